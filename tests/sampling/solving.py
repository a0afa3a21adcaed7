"""Tools for tests of solvers: exact solutions, orders of convergence, and runs with given noise."""

import functools
import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine, LogLinear
from jaxdiff.sampling.grids import continuous as grids
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.protocols import stateless
from tests.oracles import Gaussian, Mixture

VE = VarianceExploding()
OTHERS = [VariancePreserving(Cosine()), RectifiedFlow()]
SIGMA_MIN, SIGMA_MAX = 0.05, 10.0
GRIDS = [
    grids.Karras(SIGMA_MIN, SIGMA_MAX),
    grids.LogSnrUniform(-2 * math.log(SIGMA_MAX), -2 * math.log(SIGMA_MIN)),
]
POINTS = 16
QUICK = {"xla_backend_optimization_level": 0}  # most of the time of these tests is the compiler's
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [0.8, -0.2]]), np.array([0.4, 0.7])


def start() -> jax.Array:
    """Points at noise level SIGMA_MAX: as many for the Gaussian data as for the mixture."""
    x = SIGMA_MAX * np.random.default_rng(0).normal(size=(POINTS, 1, 1, 2))
    return jnp.asarray(np.concatenate([x, x]))


def gaussian() -> Gaussian:
    mean = np.random.default_rng(1).normal(size=(POINTS, 1, 1, 2))
    return Gaussian(jnp.asarray(mean), jnp.asarray([0.5, 0.9]).reshape(1, 1, 1, 2))


def mixture() -> Mixture:
    return Mixture(jnp.asarray(WEIGHTS), jnp.asarray(MEANS), jnp.asarray(STDS))


def denoiser(process):
    """The exact denoiser of both: the first half of a batch is Gaussian data, the other of the mixture."""
    one, other = gaussian().denoiser(process), mixture().denoiser(process)

    def denoise(x, t):
        x_0, noise = zip(one(x[:POINTS], t)[:2], other(x[POINTS:], t)[:2], strict=True)
        return Prediction(jnp.concatenate(x_0), jnp.concatenate(noise))

    return denoise


def flow(sigmas) -> np.ndarray:
    """The probability flow of VE from `start` at SIGMA_MAX, at these falling levels: [levels, batch, ...].

    In closed form for the Gaussian data, by a solver of high order for the mixture.
    """
    x, sigmas = np.asarray(start()), np.asarray(sigmas)

    def slope(sigma, flat):
        values = flat.reshape(-1, 1, 2)
        variance = STDS**2 + sigma**2
        logits = np.log(WEIGHTS) - np.log(variance) - np.sum((values - MEANS) ** 2, -1) / (2 * variance)
        share = np.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        score = np.sum(share[..., None] * (MEANS - values) / variance[:, None], 1)
        return (-sigma * score).ravel()

    span, flat = (SIGMA_MAX, sigmas[-1]), x[POINTS:].ravel()
    found = solve_ivp(slope, span, flat, "DOP853", t_eval=sigmas, rtol=1e-13, atol=1e-13)
    mixed = found.y.T.reshape(len(sigmas), *x[POINTS:].shape)
    first, *times = VE.time(-2 * jnp.log(jnp.asarray([SIGMA_MAX, *sigmas])))
    exact = np.stack([gaussian().flow(VE, x[:POINTS], first, t) for t in times])
    return np.concatenate([exact, mixed], axis=1)


@functools.cache
def truth() -> np.ndarray:
    """The flow at SIGMA_MIN."""
    return flow([SIGMA_MIN])[0]


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def solve(sampler, process, times, x):
    """The batch on every grid: times is [grids, steps + 1], the result [grids, batch, ...]."""
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    return jax.vmap(lambda one: integrate(sampler, denoiser(process), process, one, x, keys))(times)


@functools.cache
def errors(sampler, steps: int) -> np.ndarray:
    """Root mean square over the points: [grid, data set]."""
    found = solve(sampler, VE, jnp.stack([grid(VE, steps + 1) for grid in GRIDS]), start())
    square = (np.asarray(found) - truth()) ** 2
    return np.sqrt(square.reshape(len(GRIDS), 2, -1).mean(-1))


def orders(sampler, steps: int = 96) -> np.ndarray:
    """Measured order of convergence on each grid and data set, from `steps` and twice as many."""
    return np.log2(errors(sampler, steps) / errors(sampler, 2 * steps))


def levels(alpha, sigma):
    """A process that has these levels, and their times. It is invertible, so nodes in between are exact."""
    process = VariancePreserving(LogLinear(0.01, 100.0))
    return process, process.time(2 * jnp.log(jnp.asarray(alpha) / jnp.asarray(sigma)))


class Draws:
    """Context in which samplers draw the given arrays instead of noise, one per call."""

    def __init__(self, noise):
        self.noise = iter(noise)

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name, module in list(sys.modules.items()):
            if name.startswith("jaxdiff.sampling.") and hasattr(module, "noise_like"):
                self.patch.setattr(module, "noise_like", lambda keys, x: jnp.asarray(next(self.noise)))
        return self

    def __exit__(self, *error):
        self.patch.undo()


def walk(sampler, denoise, process, times, x, noise=(), state=None, max_orders=None) -> list[np.ndarray]:
    """The data at each of the times, with the given draws in this order and bounds on the orders of the steps."""
    keys, denoise = jax.random.split(jax.random.key(0), x.shape[0]), stateless(denoise)
    if state is None:
        state = sampler.init(jnp.asarray(x))._replace(guidance=denoise.init(jnp.asarray(x)))
    seen = [np.asarray(state.x)]
    with Draws(noise):
        for k, (t, t_next) in enumerate(itertools.pairwise(jnp.asarray(times))):
            if max_orders is not None:
                state = state._replace(max_order=max_orders[k])
            state = sampler.step(denoise.call, process, state, t, t_next, keys)
            seen.append(np.asarray(state.x))
    return seen
