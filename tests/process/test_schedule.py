import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jaxdiff.errors import UserError
from jaxdiff.process.schedule import Cosine, Linear, LogLinear

SCHEDULES = [
    Linear(),
    Linear(0.3, 3.0),
    Linear(2.0, 2.0),
    Cosine(),
    Cosine(-8.0, 12.0),
    LogLinear(0.002, 80.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_time_inverts_log_snr(schedule):
    t = jnp.asarray(np.concatenate([np.linspace(1e-6, 1, 181), 1 - np.logspace(-9, -2, 20)]))
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-9)
    log_snr = jnp.asarray(np.linspace(-5, 10, 201))
    np.testing.assert_allclose(schedule.log_snr(schedule.time(log_snr)), log_snr, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_log_snr_falls(schedule):
    assert np.all(np.diff(schedule.log_snr(jnp.asarray(np.linspace(0, 1, 201)))) < 0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_single_precision_holds_near_both_ends(schedule, float32):
    t = np.concatenate([np.logspace(-6, -1, 100), 1 - np.logspace(-4, -1, 101)]).astype(np.float32)
    with jax.enable_x64(True):
        exact = schedule.log_snr(jnp.asarray(t, jnp.float64))
    found = schedule.log_snr(jnp.asarray(t))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=2e-4)


def test_linear_is_the_vp_sde():
    schedule = Linear(0.1, 20.0)
    t = np.linspace(0, 1, 201)
    total = np.array([integrate.quad(lambda time: 0.1 + time * 19.9, 0, end)[0] for end in t[1:]])
    signal = np.exp(-total)
    log_snr = schedule.log_snr(jnp.asarray(t))
    np.testing.assert_allclose(log_snr[1:], np.log(signal / (1 - signal)), rtol=1e-7)
    assert log_snr[0] == np.inf


def test_cosine_reaches_its_bounds_and_is_a_cosine():
    schedule = Cosine(-15.0, 15.0)
    np.testing.assert_allclose(schedule.log_snr(jnp.array([0.0, 1.0])), [15.0, -15.0], rtol=1e-12)
    wide, t = Cosine(-60.0, 60.0), jnp.asarray(np.linspace(0.01, 0.99, 201))
    signal = np.cos(np.pi / 2 * np.asarray(t)) ** 2
    np.testing.assert_allclose(wide.log_snr(t), np.log(signal / (1 - signal)), rtol=1e-9, atol=1e-9)


def test_log_linear_is_geometric_in_sigma():
    sigma = jnp.exp(-LogLinear(0.01, 100.0).log_snr(jnp.array([-0.5, 0.0, 0.5, 1.0])) / 2)
    np.testing.assert_allclose(sigma, [1e-4, 0.01, 1.0, 100.0], rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [lambda: Linear(0.0), lambda: Linear(2.0, 1.0), lambda: Cosine(1.0, -1.0), lambda: LogLinear(0.0, 1.0)],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(UserError, match="Fix"):
        make()
