"""Solvers against the exact solution of the probability-flow ODE: right limit, right order."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, Mixture
from scipy.integrate import solve_ivp

from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling import grids
from jaxdiff.sampling.ddim import Ddim
from jaxdiff.sampling.dpm_solver import DpmSolver2M
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.loop import integrate

VE = VarianceExploding()
SIGMA_MIN, SIGMA_MAX = 0.05, 10.0
GRIDS = [
    grids.Karras(SIGMA_MIN, SIGMA_MAX),
    grids.LogSnrUniform(-2 * math.log(SIGMA_MAX), -2 * math.log(SIGMA_MIN)),
]
OTHERS = [VariancePreserving(Cosine()), RectifiedFlow()]
SAMPLERS = [(Ddim(), 0.95, 1.05), (Heun(), 1.9, 2.1), (DpmSolver2M(), 1.9, 2.1)]
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [0.8, -0.2]]), np.array([0.4, 0.7])


def start() -> np.ndarray:
    return SIGMA_MAX * np.random.default_rng(0).normal(size=(16, 1, 1, 2))


def gaussian() -> Gaussian:
    mean = np.random.default_rng(1).normal(size=(16, 1, 1, 2))
    return Gaussian(jnp.asarray(mean), jnp.asarray([0.5, 0.9]).reshape(1, 1, 1, 2))


def mixture() -> Mixture:
    return Mixture(jnp.asarray(WEIGHTS), jnp.asarray(MEANS), jnp.asarray(STDS))


@functools.cache
def mixture_truth() -> np.ndarray:
    """The ODE of the mixture by a high-order solver, with the score written out in numpy."""

    def slope(sigma, flat):
        x = flat.reshape(-1, 1, 2)
        variance = STDS**2 + sigma**2
        logits = np.log(WEIGHTS) - np.log(variance) - np.sum((x - MEANS) ** 2, -1) / (2 * variance)
        share = np.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        score = np.sum(share[..., None] * (MEANS - x) / variance[:, None], 1)
        return (-sigma * score).ravel()

    solution = solve_ivp(slope, (SIGMA_MAX, SIGMA_MIN), start().ravel(), "DOP853", rtol=1e-12, atol=1e-12)
    return solution.y[:, -1].reshape(start().shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def solve(sampler, process, times, x):
    """Gaussian data and the mixture, both from x."""
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    denoisers = (oracle.denoiser(process) for oracle in (gaussian(), mixture()))
    return [integrate(sampler, denoise, process, times, x, keys) for denoise in denoisers]


@pytest.mark.parametrize("grid", GRIDS, ids=["karras", "log"])
@pytest.mark.parametrize(("sampler", "low", "high"), SAMPLERS, ids=lambda value: str(value))
def test_order_of_convergence(sampler, low, high, grid):
    x = jnp.asarray(start())
    times = grid(VE, 2)
    truths = (gaussian().flow(VE, x, times[0], times[1]), mixture_truth())
    errors = []
    for steps in (96, 192):
        found = solve(sampler, VE, grid(VE, steps + 1), x)
        errors.append([np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(found, truths, strict=True)])
    slopes = np.log2(np.divide(*errors))
    assert np.all((low < slopes) & (slopes < high)), slopes
    assert np.all(np.array(errors) < 0.1)


@pytest.mark.parametrize("process", OTHERS, ids=str)
@pytest.mark.parametrize("sampler", [Ddim(), Heun(), DpmSolver2M()], ids=str)
def test_every_process_is_the_same_path_in_other_coordinates(sampler, process):
    """``x / alpha`` depends on the noise levels ``sigma / alpha`` alone, so no process can favour a mistake."""
    x = jnp.asarray(start())
    first, last = process.signal(GRIDS[0](process, 2)).alpha
    expected = solve(sampler, VE, GRIDS[0](VE, 7), x)
    found = solve(sampler, process, GRIDS[0](process, 7), first * x)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours / last, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sampler", [Ddim(), Heun(), DpmSolver2M()], ids=str)
def test_a_single_image_is_reached_exactly_from_pure_noise(sampler):
    """Its ODE is a straight line in the coordinates of every solver here; alpha = 0 must divide nothing."""
    x, flow, oracle = jnp.asarray(start()), RectifiedFlow(), Gaussian(gaussian().mean, jnp.zeros(()))
    times, keys = grids.Uniform()(flow, 4), jax.random.split(jax.random.key(0), 16)
    found = integrate(sampler, oracle.denoiser(flow), flow, times, x, keys)
    np.testing.assert_allclose(found, oracle.flow(flow, x, times[0], times[-1]), rtol=1e-9, atol=1e-9)
