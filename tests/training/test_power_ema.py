"""Power-function averages: their closed form, EDM2's values, and reconstruction of one length from others."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.errors import UserError
from jaxdiff.training.ema import Ema, EmaProfile, HalfLifeEma, NoEma
from jaxdiff.training.power_ema import PowerEma, coefficients, exponent, relative_std

STORED = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "edm2_averages.npz")


def updates(average: EmaProfile, dtype):
    """The EMAs after each of the stored parameters, `average` and its `extra_emas`: [update, average, ...]."""
    tracked = [average, *average.extra_emas()]
    start = {name: jnp.asarray(STORED[f"in/init_{name}"], dtype) for name in "wb"}
    state, seen = [start] * len(tracked), []
    for step in range(len(STORED["in/net_w"])):
        params = {name: jnp.asarray(STORED[f"in/net_{name}"][step], dtype) for name in "wb"}
        state = [one.update(ema, params, step) for one, ema in zip(tracked, state, strict=True)]
        seen.append(state)
    return {name: np.stack([[ema[name] for ema in row] for row in seen]) for name in "wb"}


@pytest.mark.parametrize(("kind", "tolerance"), [("f64", 1e-12), ("f32", 1e-6)])
def test_averages_match_edm2(kind, tolerance):
    with jax.enable_x64(kind == "f64"):
        dtype = {"f64": jnp.float64, "f32": jnp.float32}[kind]
        found = updates(PowerEma(tuple(STORED["in/stds"].tolist())), dtype)
        assert found["w"].dtype == dtype
        for name in "wb":
            np.testing.assert_allclose(found[name], STORED[f"out/{kind}/ema_{name}"], atol=tolerance)
        # batches of 64 images: 192 are the half-life, and 9 % of the images seen its bound
        found = updates(HalfLifeEma(half_life=3.0, ramp=0.09), dtype)
        np.testing.assert_allclose(found["w"][:, 0], STORED[f"out/{kind}/traditional_w"], atol=tolerance)


def test_lengths_and_exponents_match_edm2_and_are_inverse():
    found = [exponent(std) for std in STORED["in/many_stds"].tolist()]
    np.testing.assert_allclose(found, STORED["out/exp"], rtol=1e-12)
    np.testing.assert_allclose([relative_std(gamma) for gamma in found], STORED["in/many_stds"], rtol=1e-9)
    assert relative_std(0.0) == pytest.approx(12**-0.5)


def test_decay_matches_edm2():
    with jax.enable_x64(True):
        steps = STORED["in/beta_nimg"] / 64 - 1
        found = [
            [1 - float(PowerEma((std,)).one_minus_decay(step)) for step in steps]
            for std in STORED["in/many_stds"].tolist()
        ]
    np.testing.assert_allclose(found, STORED["out/beta"], rtol=1e-9, atol=1e-12)


def test_the_gain_of_a_late_step_keeps_its_digits_in_float32():
    step = 10**6
    gain = PowerEma((0.1,)).one_minus_decay(jnp.int32(step))
    assert gain.dtype == jnp.float32
    exact = -np.expm1((exponent(0.1) + 1) * np.log1p(-1 / (step + 1)))
    assert float(gain) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_the_average_of_time_has_the_profiles_mean_and_deviation(std):
    """The profile ``tau^gamma``: mean ``(gamma + 1) / (gamma + 2)`` of the time, and standard deviation `std` of it."""
    average, steps, gamma = PowerEma((std,)), 2000, exponent(std)

    def step(ema, number):
        time = number + 1.0
        return average.update(ema, {"mean": time, "square": time**2}, number), None

    start = {"mean": jnp.float32(-1e6), "square": jnp.float32(1e9)}  # is forgotten at the first update
    found, _ = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(steps)))()
    mean = float(found["mean"])
    assert mean / steps == pytest.approx((gamma + 1) / (gamma + 2), rel=2e-3)
    assert (float(found["square"]) - mean**2) ** 0.5 / steps == pytest.approx(std, rel=1e-2)


def test_coefficients_match_edm2():
    steps, stds = STORED["in/posthoc_in_ofs"], STORED["in/posthoc_in_std"]
    for i, (step, std) in enumerate(
        zip(STORED["in/posthoc_out_ofs"], STORED["in/posthoc_out_std"], strict=True)
    ):
        found = coefficients(steps, stds, step, std)
        np.testing.assert_allclose(found, STORED["out/posthoc_coefficients"][:, i], atol=1e-8 * 117)
        assert np.sum(found) == pytest.approx(1, abs=1e-12)


def test_a_tracked_length_is_its_own_reconstruction():
    steps, stds = np.array([40.0, 40.0, 80.0, 80.0]), np.array([0.05, 0.1, 0.05, 0.1])
    np.testing.assert_allclose(coefficients(steps, stds, 80.0, 0.1), [0, 0, 0, 1], atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerEma(()), r"stds=\(\)"),
        (lambda: PowerEma((0.3,)), r"stds=0.3: expected a number in \(0, 0.2887\)"),
        (lambda: PowerEma((0.05, 0.0)), "stds=0.0"),
        (lambda: PowerEma((0.05, 0.05)), "expected different standard deviations"),
        (lambda: PowerEma(snapshot_every=-1), "snapshot_every=-1"),
        (lambda: PowerEma(samples=PowerEma()), "samples=PowerEma.*expected a single average"),
        (lambda: PowerEma(samples=PowerEma((0.05,), 10)), "samples=PowerEma.*without snapshots"),
        (lambda: PowerEma(samples=NoEma()), "samples=NoEma.*expected a single average"),
        (lambda: HalfLifeEma(0.0), "half_life=0.0"),
        (lambda: HalfLifeEma(9.0, ramp=0.0), "ramp=0.0"),
    ],
)
def test_impossible_settings_are_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_half_life_without_a_ramp():
    average = HalfLifeEma(half_life=4.0, ramp=None)
    value = jnp.float32(1.0)
    for step in range(8):
        value = average.update(value, jnp.float32(0.0), step)
    assert float(value) == pytest.approx(0.25, rel=1e-6)


def test_profiles_survive_json():
    block = spec(PowerEma, stds=(0.05, 0.12), snapshot_every=100)
    assert build(from_json(to_json(block))) == PowerEma((0.05, 0.12), 100)
    assert PowerEma((0.05, 0.12)).extra_emas() == (PowerEma((0.12,)),)
    assert Ema().extra_emas() == ()
