"""Grids of noise levels against their papers' formulas and other libraries' numbers."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine, Linear
from jaxdiff.process.table import CosineBetas, LinearBetas, Table
from jaxdiff.sampling.grids.align_your_steps import SDXL, STABLE_DIFFUSION, STABLE_VIDEO, AlignYourSteps
from jaxdiff.sampling.grids.continuous import (
    Exponential,
    Karras,
    KarrasBetween,
    LogSnrUniform,
    Shifted,
    Uniform,
    UniformBetween,
)
from jaxdiff.sampling.grids.discrete import Linspace
from jaxdiff.sampling.grids.restart import RePaint

PROCESSES = [VariancePreserving(Cosine()), VarianceExploding(), RectifiedFlow()]
GRIDS = [
    Uniform(),
    UniformBetween(),
    Karras(),
    LogSnrUniform(),
    Exponential(),
    Exponential(0.01, 50.0, 2.0),
    Shifted(Uniform(), 3.0),
    AlignYourSteps(),
    AlignYourSteps(SDXL),
    KarrasBetween(LogSnrUniform()),
]
DDPM = VariancePreserving(Table(LinearBetas()))
GOLDENS = np.load(pathlib.Path(__file__).parents[2] / "goldens" / "tables.npz")


def levels(process, t):
    alpha, sigma = map(np.asarray, process.signal(t))
    return sigma / alpha


def test_uniform_ends_one_step_before_clean_data():
    np.testing.assert_allclose(Uniform()(RectifiedFlow(), 4), [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(Uniform(0.8)(RectifiedFlow(), 2), [0.8, 0.4])


def test_uniform_between_visits_both_ends():
    np.testing.assert_allclose(UniformBetween(0.9, 0.1)(RectifiedFlow(), 5), [0.9, 0.7, 0.5, 0.3, 0.1])


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_karras_levels_are_the_papers(process):
    s = levels(process, Karras(0.01, 50.0, 5.0)(process, 6))
    i = np.arange(6) / 5
    np.testing.assert_allclose(s, (50**0.2 + i * (0.01**0.2 - 50**0.2)) ** 5, rtol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_karras_between_the_ends_of_another_grid(process):
    times = KarrasBetween(Exponential(0.05, 5.0), 3.0)(process, 6)
    np.testing.assert_allclose(
        levels(process, times), levels(process, Karras(0.05, 5.0, 3.0)(process, 6)), rtol=1e-9
    )


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_uniform_log_snr(process):
    log_snr = process.log_snr(LogSnrUniform(-8.0, 6.0)(process, 8))
    np.testing.assert_allclose(log_snr, np.arange(-8.0, 7.0, 2.0), atol=1e-9)


def test_exponential_equals_uniform_log_snr():
    found = Exponential(0.02, 40.0)(RectifiedFlow(), 7)
    other = LogSnrUniform(-2 * math.log(40.0), -2 * math.log(0.02))(RectifiedFlow(), 7)
    np.testing.assert_allclose(found, other, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "grid", "process"),
    [
        ("karras", Karras(0.02, 80.0), VarianceExploding()),
        ("exponential", Exponential(0.02, 80.0), VarianceExploding()),
        ("polyexponential_rho1", Exponential(0.02, 80.0), RectifiedFlow()),
        ("polyexponential_rho2", Exponential(0.02, 80.0, 2.0), RectifiedFlow()),
        ("vp", UniformBetween(1.0, 1e-3), VariancePreserving(Linear(0.1, 20.0))),
        ("vp_opts", UniformBetween(1.0, 2e-3), VariancePreserving(Linear(0.3, 15.3))),
    ],
)
def test_levels_match_k_diffusion(name, grid, process):
    np.testing.assert_allclose(
        levels(process, grid(process, 10)), GOLDENS[f"kdiffusion/{name}"][:-1], rtol=1e-9
    )


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("name", "grid", "process"),
    [
        ("vp", UniformBetween(1.0, 1e-3), VariancePreserving(Linear(0.1, 20.0))),
        ("ve", Exponential(0.02, 100.0), VarianceExploding()),
        ("iddpm", Linspace(1000, skip=8), VariancePreserving(Table(CosineBetas()))),
    ],
)
def test_levels_of_earlier_models_match_edm(name, grid, process):
    """Karras et al. 2022, table 1: the columns VP, VE and iDDPM, with 18 steps. Its table of iDDPM is in float32."""
    rtol = 1e-3 if name == "iddpm" else 1e-9
    np.testing.assert_allclose(levels(process, grid(process, 18)), GOLDENS[f"edm/{name}"], rtol=rtol)


@pytest.mark.parametrize(("name", "make"), [("v_karras", Karras), ("exponential", Exponential)])
def test_levels_between_the_steps_of_a_table_match_diffusers(name, make):
    """Levels, and the fractional step that the network receives: ``log(sigma / alpha)`` is linear between steps."""
    last, first = levels(DDPM, jnp.array([0.001, 1.0]))
    t = make(float(last), float(first))(DDPM, 10)
    np.testing.assert_allclose(levels(DDPM, t), GOLDENS[f"diffusers/euler/{name}/sigmas"][:-1], rtol=1e-9)
    np.testing.assert_allclose(
        t * 1000 - 1, GOLDENS[f"diffusers/euler/{name}/timesteps"], rtol=1e-9, atol=1e-8
    )


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("flow_euler/shift1", UniformBetween(1.0, 1e-3)),
        # There the end of the range is shifted before the range is.
        ("flow_euler/shift3", Shifted(UniformBetween(1.0, 3e-3 / (1 + 2e-3)), 3.0)),
        ("dpmpp/order2_flow_shift3", Shifted(Uniform(0.999), 3.0)),
    ],
)
def test_shifted_flows_match_diffusers(name, grid):
    _, sigma = RectifiedFlow().signal(grid(RectifiedFlow(), 10))
    np.testing.assert_allclose(sigma, GOLDENS[f"diffusers/{name}/sigmas"][:-1], rtol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_shift_multiplies_every_level(process):
    grid = Karras(0.01, 10.0)
    shifted = levels(process, Shifted(grid, 2.5)(process, 5))
    np.testing.assert_allclose(shifted, 2.5 * levels(process, grid(process, 5)), rtol=1e-9)
    t = np.asarray(Uniform()(RectifiedFlow(), 8))
    np.testing.assert_allclose(Shifted(Uniform(), 3.0)(RectifiedFlow(), 8), 3 * t / (1 + 2 * t), rtol=1e-12)


@pytest.mark.parametrize(
    ("key", "published"),
    [
        ("StableDiffusion", STABLE_DIFFUSION),
        ("StableDiffusionXL", SDXL),
        ("StableDiffusionVideo", STABLE_VIDEO),
    ],
)
def test_ten_aligned_steps_are_the_published_levels(key, published):
    flow = RectifiedFlow()
    ten = levels(flow, AlignYourSteps(published)(flow, 10))
    np.testing.assert_allclose(ten, published[:10], rtol=1e-9)
    # Twice as many lie between them, and their logarithms in the middle.
    twenty = levels(flow, AlignYourSteps(published)(flow, 20))
    np.testing.assert_allclose(twenty[::2], ten, rtol=1e-9)
    np.testing.assert_allclose(twenty[1::2] ** 2, np.multiply(published[:-1], published[1:]), rtol=1e-9)
    assert tuple(GOLDENS[f"diffusers/aligned/{key}"].tolist()) == published[:10]


@pytest.mark.spread(5)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_one_step_is_the_noisiest_level(grid):
    three, nine = grid(RectifiedFlow(), 3), grid(RectifiedFlow(), 9)
    assert grid(RectifiedFlow(), 1).tolist() == three[:1].tolist()
    assert three.shape == (3,)
    assert np.all(np.diff(nine) < 0)
    assert jnp.all(nine > 0)


def test_the_ends_of_a_flow_stay_times(float32):
    """In single precision and compiled, as in sampling."""
    for grid in GRIDS:
        t = jax.jit(lambda grid=grid: grid(RectifiedFlow(), 9))()
        assert t.dtype == jnp.float32
        assert np.all(np.diff(t) < 0)
        assert 0 < t[-1] < t[0] <= 1


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_configs_build_the_same_grid(grid):
    block = describe(grid)
    assert build(block) == build(from_json(to_json(block))) == grid


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(0.0),
        lambda: UniformBetween(t_min=0.0),
        lambda: UniformBetween(0.1, 0.1),
        lambda: Karras(0.0),
        lambda: Karras(2.0, 1.0),
        lambda: Karras(rho=0.0),
        lambda: Exponential(0.0),
        lambda: Exponential(1.0, 1.0),
        lambda: Exponential(rho=-1.0),
        lambda: LogSnrUniform(1.0, 0.0),
        lambda: Shifted(Uniform(), 0.0),
        lambda: Shifted(RePaint(Uniform()))(RectifiedFlow(), 30),
        lambda: AlignYourSteps((1.0,)),
        lambda: AlignYourSteps((1.0, 2.0)),
        lambda: AlignYourSteps((1.0, 0.0)),
    ],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(UserError, match="Fix"):
        make()
