"""Learned grids: where the best times are known in closed form, they are found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids.continuous import Karras, Uniform
from jaxdiff.sampling.grids.given import Given
from jaxdiff.sampling.learning import CLOSEST, After, fit
from jaxdiff.sampling.loop import sample
from jaxdiff.sampling.samplers.ddim import Ddim
from tests.oracles import Gaussian

VE = VarianceExploding(sigma_min=0.002, sigma_max=80.0)
STD, FIRST = 0.5, 10.0  # of the data, and of the noise at the first time


def gradient(steps):
    """The error of DDIM on Gaussian data, whose exact samples are known, and its gradient."""
    oracle = Gaussian(jnp.zeros(()), jnp.asarray(STD))
    x = FIRST * jax.random.normal(jax.random.key(0), (8, 3))
    exact = x * STD / np.hypot(STD, FIRST)
    keys = jax.random.split(jax.random.key(1), 8)
    first = float(VE.time(jnp.asarray(-2 * np.log(FIRST))))

    def error(log_snr):
        times = After(first, log_snr)(VE, steps)
        return jnp.mean((sample(Ddim(), oracle.denoiser(VE), VE, times, x, keys) - exact) ** 2)

    return jax.jit(jax.value_and_grad(error))


def test_the_best_time_of_two_steps_is_that_of_the_closed_form():
    """A step from a to b scales Gaussian data by (s^2 + a b) / (s^2 + a^2), and the jump by s^2 / (s^2 + b^2)."""
    slope = gradient(2)
    found = fit(lambda log_snr, _: slope(log_snr), np.array([0.0]), iterations=300, rate=0.05)
    best = (-(STD**2) + STD * np.hypot(STD, FIRST)) / FIRST
    np.testing.assert_allclose(np.exp(-found.log_snr / 2), [best], rtol=1e-3)
    assert len(found.errors) == 300
    assert found.errors[-1] < found.errors[0]


def test_more_steps_end_where_no_time_can_be_improved():
    slope = gradient(5)
    start = np.asarray(VE.log_snr(Karras(sigma_max=FIRST)(VE, 5)[1:]))
    found = fit(lambda log_snr, _: slope(log_snr), start, iterations=500, rate=0.1)
    assert np.all(np.diff(found.log_snr) > 0)
    before, after = slope(jnp.asarray(start)), slope(jnp.asarray(found.log_snr))
    assert after[0] < 0.5 * before[0]
    assert np.abs(after[1]).max() < 0.02 * np.abs(before[1]).max()


def test_iterations_are_numbered_so_that_each_may_have_samples_of_its_own():
    seen = []

    def slope(log_snr, number):
        seen.append(number)
        return jnp.sum(log_snr), jnp.ones_like(log_snr)

    fit(slope, np.array([0.0, 1.0]), iterations=4, rate=0.1)
    assert seen == [0, 1, 2, 3]


def test_times_keep_their_order_whatever_the_gradient():
    """Pulled together as strongly as it can be, at a rate far too large."""
    found = fit(
        lambda log_snr, _: (jnp.zeros(()), jnp.arange(4.0)), np.array([-2.0, -1.0, 0.0, 3.0]), 50, rate=5.0
    )
    assert np.all(np.diff(found.log_snr) >= 0.99 * CLOSEST)


def test_a_distance_follows_the_pull_on_all_times_after_it():
    """The first of two distances carries both later log-SNRs, the second one the last alone."""
    slope = jnp.array([0.0, 1.0, -3.0])
    found = fit(lambda log_snr, _: (jnp.sum(slope * log_snr), slope), np.array([0.0, 1.0, 2.0]), 5, rate=0.01)
    assert np.all(np.diff(found.log_snr) > 1)
    assert found.log_snr[0] > 0


def test_a_start_is_kept_where_nothing_pulls():
    start = np.array([-3.0, -1.0, 0.5, 6.0])
    found = fit(lambda log_snr, _: (jnp.zeros(()), jnp.zeros(4)), start, 3, rate=0.1)
    np.testing.assert_allclose(found.log_snr, start, atol=1e-5)


@pytest.mark.parametrize("process", [VE, VariancePreserving(Cosine())], ids=["ve", "vp"])
def test_a_grid_has_its_first_time_and_then_the_log_snrs(process):
    times = After(1.0, jnp.array([-2.0, 0.0, 3.0]))(process, 4)
    assert times[0] == 1.0
    np.testing.assert_allclose(process.log_snr(times[1:]), [-2.0, 0.0, 3.0], atol=1e-5)


def test_given_times_are_those_of_another_grid():
    times = Uniform()(VE, 5)
    np.testing.assert_array_equal(Given(tuple(times.tolist()))(VE, 5), times)


@pytest.mark.parametrize("times", [(), (0.5, 0.5), (0.2, 0.5), (np.inf, 0.5), (0.5, np.nan)], ids=str)
def test_given_times_that_do_not_fall_are_errors(times):
    with pytest.raises(UserError, match=r"times=.*expected decreasing numbers"):
        Given(times)


def test_given_times_are_for_one_number_of_steps():
    with pytest.raises(UserError, match="steps=4: expected 3, for which"):
        Given((1.0, 0.5, 0.2))(VE, 4)
