"""Restart sampling, on Gaussian data with an exact ODE solver: affine, so that every number is in closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids import continuous as grids
from jaxdiff.sampling.grids.restart import Restart
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.sampling.samplers.heun import Heun
from tests.oracles import Gaussian
from tests.sampling.solving import Draws

MEAN, STD = 0.7, 0.5
PROCESSES = [VarianceExploding(), VariancePreserving(Cosine()), RectifiedFlow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)


def data() -> Gaussian:
    return Gaussian(jnp.asarray(MEAN), jnp.asarray(STD))


@dataclasses.dataclass(frozen=True)
class Exact:
    """The exact probability flow."""

    def calls(self, steps):
        return steps

    def init(self, x):
        return SamplerState(x)

    def step(self, denoise, process, state, t, t_next, keys):
        return SamplerState(data().flow(process, state.x, t, t_next))


def grid(repeats: int) -> Restart:
    return Restart(grids.Karras(0.02, 40.0), s_min=0.1, s_max=1.5, repeats=repeats, steps=2)


@functools.cache
def coefficients(sampler, process, restart):
    """The path; offset, gain of the start and coefficients of every draw at its end."""
    path = restart(process, 6)
    steps = len(path.start)
    size = 2 + steps
    x = jnp.zeros((size, 1, 1, 1)).at[1].set(1.0)
    # Image 0 starts at 0 and draws 0; image 1 starts at 1; each other one draws a single 1.
    drawn = jnp.eye(size)[2:].reshape(steps, size, 1, 1, 1)
    with jax.disable_jit(), Draws(drawn):
        end = integrate(
            sampler, data().denoiser(process), process, path, x, jax.random.split(jax.random.key(0), size)
        )
    offset, moved = end[0, 0, 0, 0], end[1:, 0, 0, 0]
    return path, float(offset), np.asarray(moved[0] - offset), np.asarray(moved[1:] - offset)


def scale(process, t):
    """Of the marginal: alpha, and the standard deviation of ``x / alpha``."""
    alpha, sigma = process.signal(t)
    return float(alpha), float(jnp.hypot(STD, sigma / alpha))


def turn(path):
    """The times between which it restarts."""
    rises = np.flatnonzero(np.asarray(path.start)[1:] > np.asarray(path.end)[:-1])
    return path.end[rises[0]], path.start[rises[0] + 1], len(rises)


@pytest.mark.slow
@pytest.mark.spread(1)
@each_process
def test_an_exact_flow_keeps_the_distribution_through_restarts(process):
    path, offset, gain, draws = coefficients(Exact(), process, grid(3))
    (alpha, std), (alpha_end, std_end) = (scale(process, t) for t in (path.start[0], path.end[-1]))
    np.testing.assert_allclose(offset + gain * alpha * MEAN, alpha_end * MEAN, rtol=1e-10)
    variance = (gain * alpha * std) ** 2 + np.sum(draws**2)
    np.testing.assert_allclose(variance, (alpha_end * std_end) ** 2, rtol=1e-10)
    assert np.count_nonzero(draws) == 3


@each_process
def test_an_error_of_the_prior_shrinks_with_every_restart(process):
    """By the same factor each time (Xu et al. 2023: the error falls exponentially in the number of restarts).

    It is the contraction of the flow from s_max to s_min; what the way up adds is the same with and without the error.
    """
    path, _, gain, _ = coefficients(Exact(), process, grid(3))
    (alpha, std), (alpha_end, std_end) = (scale(process, t) for t in (path.start[0], path.end[-1]))
    low, high, rises = turn(path)
    assert rises == 3
    factor = scale(process, low)[1] / scale(process, high)[1]
    assert factor < 0.35
    np.testing.assert_allclose(gain, (std_end / std) * (alpha_end / alpha) * factor**3, rtol=1e-10)


def test_restarts_correct_a_prior_of_wrong_mean_and_variance():
    """The flow alone keeps the initial error; three restarts remove nearly all of it."""
    process, wrong_mean, wrong_variance = VarianceExploding(), 3.0, 4.0
    missed = {}
    for repeats in (0, 3):
        path, offset, gain, draws = coefficients(Exact(), process, grid(repeats))
        _, std = scale(process, path.start[0])
        _, std_end = scale(process, path.end[-1])
        mean = offset + gain * (MEAN + wrong_mean)
        variance = (gain * std) ** 2 * wrong_variance + np.sum(draws**2)
        missed[repeats] = abs(mean - MEAN), abs(variance / std_end**2 - 1)
    assert np.all(np.array(missed[0]) > (0.01, 1))
    assert np.all(np.array(missed[3]) < np.array(missed[0]) / (20, 400))


@pytest.mark.slow
def test_restarts_correct_errors_of_the_solver():
    """A coarse solver has errors above the interval; restarts reduce them, with steps of the same solver."""
    process = VarianceExploding()

    def error(repeats):
        restart = Restart(grids.Karras(0.02, 40.0), 0.1, 1.5, repeats, steps=4)
        path, _, gain, draws = coefficients(Heun(), process, restart)
        _, std = scale(process, path.start[0])
        _, std_end = scale(process, path.end[-1])
        return abs(((gain * std) ** 2 + np.sum(draws**2)) / std_end**2 - 1)

    assert error(2) < error(0) / 2
