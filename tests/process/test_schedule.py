import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.schedule import Cosine, Laplace, Linear, LogLinear, ScaledLinear, Shifted, Sigmoid

SCHEDULES = [
    Linear(),
    Linear(0.3, 3.0),
    Linear(2.0, 2.0),
    Cosine(),
    Cosine(-8.0, 12.0),
    LogLinear(0.002, 80.0),
    ScaledLinear(),
    ScaledLinear(3.0, 3.0),
    Sigmoid(),
    Sigmoid(-2.0, 5.0, 0.4, -12.0, 9.0),
    Laplace(),
    Laplace(1.5, 0.8, -20.0, 25.0),
    Shifted(Cosine(), -2.0),
    Shifted.by_size(Linear(), 256),
]


T = np.concatenate(
    [[0], np.logspace(-6, -3, 19), np.linspace(0.002, 0.998, 160), 1 - np.logspace(-3, -9, 20), [1]]
)


@functools.partial(jax.jit, static_argnums=0)
def there_and_back(schedule, t, log_snr):
    """Both compositions are the identity."""
    found = schedule.log_snr(t)
    return found, schedule.time(found), schedule.log_snr(schedule.time(log_snr))


@pytest.mark.spread(5)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_time_inverts_log_snr(schedule):
    level = np.linspace(-5, 10, 201)
    _, t, log_snr = there_and_back(schedule, jnp.asarray(T), jnp.asarray(level))
    np.testing.assert_allclose(t, T, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(log_snr, level, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_log_snr_falls(schedule):
    assert np.all(np.diff(there_and_back(schedule, jnp.asarray(T), jnp.asarray(T))[0]) < 0)


@pytest.mark.spread(5)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_single_precision_holds_near_both_ends(schedule, float32):
    t = np.concatenate([np.logspace(-6, -1, 100), 1 - np.logspace(-4, -1, 101)]).astype(np.float32)
    with jax.enable_x64(True):
        exact, _, _ = there_and_back(schedule, *[jnp.asarray(t, jnp.float64)] * 2)
    found, _, _ = there_and_back(schedule, *[jnp.asarray(t)] * 2)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=5e-6)


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


def test_scaled_linear_adds_noise_at_the_square_of_a_linear_rate():
    schedule = ScaledLinear(0.5, 9.0)
    t = np.linspace(0, 1, 201)
    rate = lambda time: (np.sqrt(0.5) + time * (3 - np.sqrt(0.5))) ** 2  # noqa: E731
    total = np.array([integrate.quad(rate, 0, end)[0] for end in t[1:]])
    np.testing.assert_allclose(
        schedule.log_snr(jnp.asarray(t))[1:], -np.log(np.expm1(total)), rtol=1e-9, atol=1e-9
    )
    assert schedule.log_snr(jnp.zeros(1)) == np.inf


@pytest.mark.parametrize("schedule", [Sigmoid(), Sigmoid(-2.0, 5.0, 0.4), Laplace(1.5, 0.8)], ids=str)
def test_infinite_log_snrs_are_clipped_to_their_bounds(schedule):
    bounds = dataclasses.replace(schedule, log_snr_min=-7.0, log_snr_max=11.0)
    np.testing.assert_allclose(bounds.log_snr(jnp.array([0.0, 1.0])), [11.0, -7.0], rtol=1e-12)


def test_sigmoid_is_the_papers():
    """With bounds wide enough to clip nothing."""
    start, end, tau = -3.0, 2.0, 0.7
    t = np.linspace(0.01, 0.99, 201)
    low, high, z = (1 / (1 + np.exp(-at / tau)) for at in (start, end, start + t * (end - start)))
    gamma = (high - z) / (high - low)
    found = Sigmoid(start, end, tau, -60.0, 60.0).log_snr(jnp.asarray(t))
    np.testing.assert_allclose(found, np.log(gamma / (1 - gamma)), rtol=1e-9, atol=1e-9)


def test_laplace_is_the_papers_for_uniform_times():
    mu, b = 0.7, 0.5
    schedule, t = Laplace(mu, b, -np.inf, np.inf), np.linspace(0.001, 0.999, 201)
    formula = mu - b * np.sign(0.5 - t) * np.log(1 - 2 * np.abs(t - 0.5))
    log_snr = np.asarray(schedule.log_snr(jnp.asarray(t)))
    np.testing.assert_allclose(log_snr, formula, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(stats.laplace(mu, b).sf(log_snr), t, rtol=1e-9)
    assert schedule.log_snr(jnp.array([0.0, 1.0])).tolist() == [np.inf, -np.inf]


def test_a_shift_by_size_is_the_log_snr_of_the_image_averaged_down():
    """Averages over squares of 4 x 4 keep smooth images and have a quarter of the standard deviation of noise."""
    t = jnp.asarray(np.linspace(0.1, 0.9, 201))
    shifted, averaged = Shifted.by_size(Cosine(), size=256, base=64), 2 * np.log(4)
    np.testing.assert_allclose(shifted.log_snr(t) + averaged, Cosine().log_snr(t), atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_configs_build_the_same_schedule(schedule):
    block = describe(schedule)
    assert build(block) == build(from_json(to_json(block))) == schedule


@pytest.mark.spread(5)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_slope_is_finite_and_the_derivative(schedule):
    """Branches that are not selected must not affect the gradient."""

    @jax.jit
    def slopes(t, h):
        log_snr, slope = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
        _, back = jax.jvp(schedule.time, (log_snr,), (slope,))
        return slope, (schedule.log_snr(t + h) - schedule.log_snr(t - h)) / (2 * h), back

    slope, differences, back = slopes(jnp.asarray(np.linspace(0.01, 0.99, 201)), 1e-6)
    np.testing.assert_allclose(slope, differences, rtol=1e-5)
    np.testing.assert_allclose(back, 1, rtol=1e-7)


def test_log_linear_is_geometric_in_sigma():
    sigma = jnp.exp(-LogLinear(0.01, 100.0).log_snr(jnp.array([-0.5, 0.0, 0.5, 1.0])) / 2)
    np.testing.assert_allclose(sigma, [1e-4, 0.01, 1.0, 100.0], rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(0.0),
        lambda: Linear(2.0, 1.0),
        lambda: ScaledLinear(0.0),
        lambda: ScaledLinear(2.0, 1.0),
        lambda: Cosine(1.0, -1.0),
        lambda: Cosine(1.0, 1.0),
        lambda: Sigmoid(1.0, 1.0),
        lambda: Sigmoid(tau=0.0),
        lambda: Sigmoid(log_snr_min=20.0),
        lambda: Laplace(b=0.0),
        lambda: Laplace(log_snr_max=-20.0),
        lambda: LogLinear(0.0, 1.0),
        lambda: LogLinear(1.0, 1.0),
    ],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(UserError, match="Fix"):
        make()
