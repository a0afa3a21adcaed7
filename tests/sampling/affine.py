"""Exact moments of stochastic samplers on Gaussian data: samples are affine in the initial image and in the draws.

The coefficient of each is found by setting it to 1 and all others to 0. Mean and variance follow without random
numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.protocols import stateless
from tests.oracles import Gaussian
from tests.sampling.solving import GRIDS, QUICK, Draws

MEAN, STD = 0.7, 0.5
VP = VariancePreserving(Cosine())
MOST = 120  # steps


def data() -> Gaussian:
    return Gaussian(jnp.asarray(MEAN), jnp.asarray(STD))


@functools.partial(jax.jit, static_argnums=(0, 1, 4), compiler_options=QUICK)
def moments(sampler, process, times, steps, draws: int, start):
    """Mean and variance after `steps` steps, from `start`, the pair at the first time; and the gain of the start.

    There may be more times than steps, so that runs of several lengths share a program.
    """
    # Image 0 starts at 0 and draws 0; image 1 starts at 1; each of the others draws a single 1.
    size = 2 + (len(times) - 1) * draws
    x = jnp.zeros((size, 1, 1, 1)).at[1].set(1.0)
    keys = jax.random.split(jax.random.key(0), size)

    def step(k, state):
        with Draws([jnp.zeros_like(x).at[2 + k * draws + j].set(1.0) for j in range(draws)]):
            return sampler.step(
                stateless(data().denoiser(process)).call, process, state, times[k], times[k + 1], keys
            )

    state = jax.lax.fori_loop(0, steps, step, sampler.init(x))
    offset, moved = state.x[0, 0, 0, 0], state.x[1:, 0, 0, 0]
    gain = moved - offset
    mean, variance = start
    return offset + gain[0] * mean, gain[0] ** 2 * variance + jnp.sum(gain[1:] ** 2), gain[0]


def marginal(process, t):
    alpha, sigma = process.signal(t)
    return alpha * MEAN, alpha**2 * STD**2 + sigma**2


def exact_gain(process, t, t_next, eta):
    """Derivative of the mean of x at t_next by x at t.

    In the flow, the ratio of their standard deviations; in the reverse SDE, their regression coefficient. The drift,
    and so the logarithm of the gain, is linear in eta.
    """
    (_, variance), (_, variance_next) = marginal(process, t), marginal(process, t_next)
    flow = jnp.sqrt(variance_next / variance)
    alpha, alpha_next = process.signal(t).alpha, process.signal(t_next).alpha
    return flow * (alpha / alpha_next * flow) ** eta


def relative_errors(sampler, process, steps: int, draws: int, eta: float) -> np.ndarray:
    """Relative errors of mean, variance and gain at the end, from the exact moments at the start."""
    times = GRIDS[0](process, steps + 1)
    padded = jnp.pad(times, (0, MOST - steps), mode="edge")
    found = moments(sampler, process, padded, steps, draws, marginal(process, times[0]))
    truth = (*marginal(process, times[-1]), exact_gain(process, times[0], times[-1], eta))
    return np.abs(np.divide(found, truth) - 1)
