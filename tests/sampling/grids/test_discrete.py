"""Steps of discrete models match the libraries in which the models were published."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.table import CosineBetas, LinearBetas, Table
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.grids.discrete import (
    Leading,
    Linspace,
    Quadratic,
    Respaced,
    Rounded,
    Skipping,
    Strided,
    Trailing,
)

DDPM = VariancePreserving(Table(LinearBetas()))
GOLDENS = np.load(pathlib.Path(__file__).parents[2] / "goldens" / "tables.npz")
GRIDS = [
    Leading(),
    Leading(offset=1, drop_last=True),
    Trailing(),
    Linspace(),
    Linspace(skip=8, drop_last=True),
    Linspace(rounded=False),
    Strided(),
    Quadratic(),
    Respaced(),
    Skipping(original=1000),
]


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("ddim/leading_epsilon_eta0", Leading()),
        ("ddim/not_alpha_one", Leading(offset=1)),
        ("ddim/trailing_epsilon_eta0", Trailing()),
        ("ddim/zero_snr_v_trailing", Trailing()),
        ("ddim/linspace_epsilon_eta0", Linspace()),
        ("euler/leading", Leading(offset=1)),
        ("euler/trailing", Trailing()),
        ("euler/linspace", Linspace()),
        ("dpmpp/order2", Linspace(drop_last=True)),
        ("dpmpp/order2_euler_at_final", Leading(offset=1, drop_last=True)),
    ],
)
def test_steps_match_diffusers(name, grid):
    t = grid(DDPM, 10)
    np.testing.assert_allclose(StepIndex()(DDPM, t), GOLDENS[f"diffusers/{name}/timesteps"], atol=1e-9)
    if f"diffusers/{name}/sigmas" in GOLDENS:
        alpha, sigma = DDPM.signal(t)
        np.testing.assert_allclose(sigma / alpha, GOLDENS[f"diffusers/{name}/sigmas"][:-1], rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 7, 30, 64, 333, 999, 1000])
def test_spacings_are_table_2_of_lin_et_al(steps):
    """Whose steps are counted from 1."""
    i, total = np.arange(steps), 1000
    leading = 1 + (i * (total // steps))[::-1]
    trailing = np.round(total - i * total / steps)
    np.testing.assert_array_equal(Leading().indices(steps) + 1, leading)
    np.testing.assert_array_equal(Trailing().indices(steps) + 1, trailing)
    if steps > 1:
        linspace = np.round(np.linspace(1, total, steps) - 1)[::-1] + 1
        np.testing.assert_array_equal(Linspace().indices(steps) + 1, linspace)
    assert Trailing().indices(steps)[0] == Linspace().indices(steps)[0] == 999


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 10, 40, 250, 500])
def test_timestep_spacing_prev_is_next_in_list(grid, steps):
    """A step goes to the next time of the list, so times must be distinct and decreasing."""
    indices = grid.indices(steps)
    assert indices.shape == (steps,)
    assert indices.min() >= 0
    assert indices.max() <= 999
    assert np.all(np.diff(indices) < 0)
    t = grid(DDPM, steps)
    assert t.shape == (steps,)
    np.testing.assert_allclose(t, (indices + 1) / 1000, rtol=1e-12)


@pytest.mark.parametrize(
    ("spacing", "grid"),
    [
        ("T1000_25", Respaced()),
        ("T1000_250", Respaced()),
        ("T1000_1", Respaced()),
        ("T1000_10-10-10", Respaced(1000, (10, 10, 10))),
        ("T300_10-15-20", Respaced(300, (10, 15, 20))),
        ("T100_7-1-13", Respaced(100, (7, 1, 13))),
        ("T1000_ddim25", Strided(1000)),
        ("T1000_ddim50", Strided(1000)),
        ("T4000_ddim250", Strided(4000)),
    ],
)
def test_steps_match_guided_diffusion(spacing, grid):
    expected = GOLDENS[f"guided/respace/{spacing}/timesteps"]
    np.testing.assert_array_equal(grid.indices(len(expected)), expected[::-1])


def test_fractional_steps_are_evenly_spaced():
    times = Linspace(rounded=False)(DDPM, 7)
    np.testing.assert_allclose(StepIndex()(DDPM, times), 166.5 * np.arange(6, -1, -1), atol=1e-9)
    dropped = Linspace(rounded=False, drop_last=True)(DDPM, 6)
    np.testing.assert_allclose(dropped, times[:-1], rtol=1e-12)


def test_two_steps_are_the_ends():
    np.testing.assert_array_equal(Respaced(100, (2, 3)).indices(5), [99, 74, 50, 49, 0])


def test_the_stride_is_the_smallest_for_the_number_of_steps():
    np.testing.assert_array_equal(Strided(1000).indices(30), np.arange(0, 1000, 34)[::-1])


def test_quadratic_steps_are_ddims():
    """``floor(c i^2)``, where they are distinct; up to 0.8 of all."""
    np.testing.assert_array_equal(
        Quadratic().indices(10), [int(800 * (i / 9) ** 2 + 1e-9) for i in range(9, -1, -1)]
    )
    assert Quadratic().indices(2).tolist() == [800, 0]
    assert Quadratic().indices(1).tolist() == [800]
    many = Quadratic().indices(200)[::-1]
    c = 800 / 199**2
    late = np.arange(60, 200)
    np.testing.assert_allclose(many[late], np.floor(c * late**2 + 1e-9))
    np.testing.assert_array_equal(many[:45], np.arange(45))


@pytest.mark.parametrize("grid", [*GRIDS, Respaced(300, (10, 15, 20))], ids=str)
def test_configs_build_the_same_grid(grid):
    block = describe(grid)
    assert build(block) == build(from_json(to_json(block))) == grid


@pytest.mark.parametrize(
    ("grid", "steps"),
    [
        (Leading(100), 101),
        (Leading(100, drop_last=True), 100),
        (Leading(100, offset=2), 50),
        (Trailing(100), 101),
        (Linspace(100), 101),
        (Linspace(100, skip=60), 50),
        (Linspace(100, skip=-1), 50),
        (Strided(1000), 501),
        (Quadratic(100), 90),
        (Respaced(100, (10, 10)), 21),
        (Respaced(100, (60, 10)), 70),
        (Respaced(100, (0, 10)), 10),
    ],
)
def test_steps_that_a_model_does_not_have_are_refused(grid, steps):
    with pytest.raises(UserError, match="Fix"):
        grid(DDPM, steps)


@pytest.mark.parametrize("last", [0.0, 1.0])
def test_impossible_fractions_are_refused(last):
    with pytest.raises(UserError, match="last="):
        Quadratic(last=last)


def test_times_are_single_precision_where_that_is_the_default(float32):
    t = Trailing()(DDPM, 1000)
    assert t.dtype == jnp.float32
    np.testing.assert_allclose(StepIndex()(DDPM, t), np.arange(999, -1, -1), atol=1e-4)


def test_a_rounded_grid_visits_the_steps_of_the_nearest_noise_levels():
    """EDM's `round_sigma` of a Karras grid, on the levels of an iDDPM model."""
    process = VariancePreserving(Table(CosineBetas()))
    alpha, sigma = map(np.asarray, process.signal(jnp.arange(1, 1001) / 1000))
    grid = Karras(0.01, 100.0)
    wanted = np.exp(-np.asarray(process.log_snr(grid(process, 18))) / 2)
    nearest = np.argmin(np.abs(sigma / alpha - wanted[:, None]), axis=1)
    np.testing.assert_allclose(Rounded(grid)(process, 18), (nearest + 1) / 1000, rtol=1e-12)


def test_steps_are_some_of_those_of_the_distillation():
    distilled = set(range(19, 1000, 20))
    assert Skipping().indices(4).tolist() == [999, 759, 499, 259]
    for steps in (1, 3, 50):
        assert set(Skipping().indices(steps).tolist()) <= distilled
    assert set(Skipping().indices(50).tolist()) == distilled
    with pytest.raises(UserError, match="steps=51: expected at most the 50 of the distillation"):
        Skipping().indices(51)
