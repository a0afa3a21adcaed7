import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.labels import LogSigma, RoundedIndex, StepIndex, Time
from jaxdiff.process.schedule import Linear
from jaxdiff.process.table import CosineBetas, ScaledLinearBetas, Table

STORED = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "edm_adm_iddpm.npz")
IDDPM = VariancePreserving(Table(CosineBetas()))
LABELS = [
    Time(),
    Time(999.0),
    StepIndex(),
    StepIndex(4, rounded=True),
    RoundedIndex(7),
    LogSigma(),
    LogSigma(1.0, -float(np.log(2))),
]
PROCESSES = [
    VariancePreserving(Linear()),
    VariancePreserving(Table(ScaledLinearBetas(), zero_terminal_snr=True)),
    VarianceExploding(),
    RectifiedFlow(),
]


def levels(process, t):
    alpha, sigma = map(np.asarray, process.signal(t))
    with np.errstate(divide="ignore"):  # pure noise
        return sigma / alpha


def test_vp_is_edms_time_of_the_level():
    """``(M - 1) sigma^-1(sigma)`` with the inverse of Karras et al. 2022, table 1."""
    t, beta_d, beta_min = jnp.asarray(np.linspace(0.01, 1, 50)), 19.9, 0.1
    process = VariancePreserving(Linear(beta_min, beta_min + beta_d))
    s = levels(process, t)
    inverse = (np.sqrt(beta_min**2 + 2 * beta_d * np.log(s**2 + 1)) - beta_min) / beta_d
    np.testing.assert_allclose(Time(999.0)(process, t), 999 * inverse, rtol=1e-9)
    np.testing.assert_array_equal(Time()(process, t), 1000 * t)


@pytest.mark.spread(3)
@pytest.mark.parametrize("process", [VarianceExploding(0.02, 100.0), *PROCESSES], ids=str)
def test_ve_and_edm_are_logarithms_of_the_level(process):
    t = jnp.asarray(np.linspace(0.01, 0.99, 50))
    s = levels(process, t)
    np.testing.assert_allclose(LABELS[-1](process, t), np.log(s / 2), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(LogSigma()(process, t), np.log(s) / 4, rtol=1e-9, atol=1e-9)


def test_iddpm_is_the_index_of_the_level():
    """``M - 1 - argmin_j |u_j - sigma|`` with the recursion for u of Karras et al. 2022, table 1."""
    steps, c_1, c_2 = 1000, 0.001, 0.008
    alpha_bar = np.sin(np.pi / 2 * np.arange(steps + 1) / (steps * (c_2 + 1))) ** 2
    u = np.zeros(steps + 1)
    for j in range(steps, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], c_1) - 1)
    process = VariancePreserving(Table(CosineBetas(steps, c_2, 1 - c_1)))
    index = np.arange(steps)
    t = jnp.asarray((index + 1) / steps)
    np.testing.assert_allclose(levels(process, t), u[steps - 1 - index], rtol=1e-9)
    np.testing.assert_allclose(StepIndex(steps)(process, t), index, atol=1e-9)


@pytest.mark.spread(5)
@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("label", LABELS, ids=str)
def test_labels_are_finite_at_both_ends_and_rise_with_the_noise(label, process, float32):
    found = label(process, jnp.array([0.0, 0.3, 0.6, 1.0], jnp.float32))
    assert np.all(np.isfinite(found))
    assert np.all(np.diff(found) > 0)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("label", LABELS, ids=str)
def test_configs_build_the_same_label(label):
    block = describe(label)
    assert build(block) == build(from_json(to_json(block))) == label


def test_rounded_labels_match_edms_round_sigma():
    """The peer's index counts from the noisiest step; 1000 is clean data."""
    t = IDDPM.time(-2 * jnp.log(jnp.asarray(STORED["in/round_sigma_in"], jnp.float64)))
    index = STORED["out/iDDPMPrecond/round_sigma_index_exact"].ravel()
    np.testing.assert_array_equal(StepIndex(rounded=True)(IDDPM, t), 999 - index)


@pytest.mark.spread(2)
@pytest.mark.parametrize("process", [IDDPM, *PROCESSES], ids=str)
def test_a_rounded_label_is_the_step_of_the_nearest_noise_level(process):
    steps, t = 20, np.linspace(0.03, 0.97, 200)
    u = levels(process, jnp.arange(1, steps + 1) / steps)
    found = np.asarray(StepIndex(steps, rounded=True)(process, jnp.asarray(t)))
    nearest = np.abs(levels(process, jnp.asarray(t))[:, None] - u[None, :])
    inside = t > 1 / steps  # below lies clean data, which is no step of this list
    np.testing.assert_array_equal(found[inside], np.argmin(nearest, axis=1)[inside])


def test_at_its_steps_a_rounded_label_is_the_index_also_in_float32(float32):
    t = jnp.arange(1, 1001, dtype=jnp.float32) / 1000
    np.testing.assert_array_equal(StepIndex(rounded=True)(IDDPM, t), np.arange(1000))
    log_snr = IDDPM.log_snr(t)
    np.testing.assert_array_equal(StepIndex(rounded=True)(IDDPM, IDDPM.time(log_snr)), np.arange(1000))


def test_a_rounded_index_is_the_step_of_the_nearest_time():
    """The level halfway in time is nearer to the lower level, and EDM's rounding takes that step."""
    t = (jnp.arange(1000) + 1 + jnp.asarray(0.49)) / 1000
    np.testing.assert_array_equal(RoundedIndex()(IDDPM, t), np.arange(1000))
    np.testing.assert_array_equal(RoundedIndex()(IDDPM, t + 0.00002), np.arange(1000) + 1)
    above = (jnp.asarray(900.0) + 0.49) / 1000
    assert RoundedIndex()(IDDPM, above) == 899
