"""PNDM and PLMS: second order in general, fourth on equal steps of the noise level."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, Signal, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.samplers.pndm import Plms, Pndm
from tests.sampling.solving import SIGMA_MAX, SIGMA_MIN, errors, orders, solve, start, truth, walk


@dataclasses.dataclass(frozen=True)
class LinearSigma:
    """The variance-exploding process whose noise level is proportional to time."""

    def signal(self, t):
        return Signal(jnp.ones_like(t), SIGMA_MAX * t)

    def log_snr(self, t):
        return -2 * jnp.log(SIGMA_MAX * t)

    def time(self, log_snr):
        return jnp.exp(-log_snr / 2) / SIGMA_MAX


@pytest.mark.spread(1)
@pytest.mark.parametrize("sampler", [Pndm("v"), Plms("v")], ids=str)
def test_means_of_v_are_of_first_order(sampler):
    """The v of different times belong to different directions."""
    found = orders(sampler)
    assert np.all((found > 0.9) & (found < 1.1)), found


@pytest.mark.spread(1)
@pytest.mark.parametrize("sampler", [Pndm(), Plms()], ids=str)
def test_order_of_convergence(sampler):
    found = orders(sampler)
    assert np.all((found > 1.85) & (found < 2.1)), found
    assert np.all(errors(sampler, 96) < 1e-3)


@pytest.mark.slow
def test_fourth_order_for_equal_steps_of_the_noise_level():
    """The initial steps are the classical Runge-Kutta method there."""

    def found(sampler, steps):
        times = jnp.linspace(1.0, SIGMA_MIN / SIGMA_MAX, steps + 1)[None]
        square = (np.asarray(solve(sampler, LinearSigma(), times, start())) - truth()) ** 2
        return np.sqrt(square.reshape(2, -1).mean(-1))

    few, many = found(Pndm(), 768), found(Pndm(), 1536)
    assert np.all(np.abs(np.log2(few / many) - 4) < 0.3), np.log2(few / many)


def noise_of_time(x, t):
    """Predicted noise ``6 s^2``: the mean over a step is in closed form."""
    sigma = LinearSigma().signal(t).sigma
    noise = jnp.broadcast_to(6 * sigma**2, x.shape)
    return Prediction(x - sigma * noise, noise)


def test_the_first_steps_are_simpsons_and_the_trapezoidal_rule():
    """For noise that is a function of time alone; Simpson's rule is exact for it."""
    sigma = np.array([3.0, 2.6, 1.9, 1.2, 0.9])
    times, x = jnp.asarray(sigma / SIGMA_MAX), jnp.zeros((1, 1, 1, 1))
    with jax.disable_jit():
        seen, plms = (np.ravel(walk(one, noise_of_time, LinearSigma(), times, x)) for one in (Pndm(), Plms()))
    np.testing.assert_allclose(np.diff(seen)[:3], np.diff(2 * sigma**3)[:3], rtol=1e-10)
    # The fourth is the method of four predictions, as if all steps had one length.
    mean = np.dot([55, -59, 37, -9], 6 * sigma[3::-1] ** 2) / 24
    np.testing.assert_allclose(np.diff(seen)[3], (sigma[4] - sigma[3]) * mean, rtol=1e-10)

    seen = plms
    np.testing.assert_allclose(
        seen[1], (sigma[1] - sigma[0]) * 3 * (sigma[0] ** 2 + sigma[1] ** 2), rtol=1e-10
    )
    mean = np.dot([3, -1], 6 * sigma[1::-1] ** 2) / 2
    np.testing.assert_allclose(seen[2] - seen[1], (sigma[2] - sigma[1]) * mean, rtol=1e-10)


@pytest.mark.parametrize("process", [RectifiedFlow(), VariancePreserving(Cosine())], ids=str)
def test_a_step_along_a_mean_of_v_has_the_data_and_the_noise_of_that_mean(process):
    """For v that is a function of time alone, on any process."""

    def of(t, x, v):
        alpha, sigma = process.signal(t)
        total = alpha**2 + sigma**2
        return (alpha * x - sigma * v) / total, (alpha * v + sigma * x) / total

    def v_at(t):
        return jnp.sin(3 * t)

    def denoise(x, t):
        return Prediction(*of(t, x, v_at(t)))

    times = jnp.asarray([0.8, 0.55, 0.4])
    seen = walk(Plms("v"), denoise, process, times, jnp.full((1, 1, 1, 1), 0.3))
    x, means = seen[0], ((v_at(0.8) + v_at(0.55)) / 2, (3 * v_at(0.55) - v_at(0.8)) / 2)
    for t, t_next, mean, found in zip(times, times[1:], means, seen[1:], strict=False):
        alpha, sigma = process.signal(t_next)
        data, noise = of(t, x, mean)
        x = alpha * data + sigma * noise
        np.testing.assert_allclose(found, x, rtol=1e-9)


def test_another_integrand_is_refused():
    with pytest.raises(UserError, match="integrand='x_0': expected one of 'noise', 'v'"):
        Plms("x_0")
