"""Solvers against the exact solution of the probability-flow ODE: right limit, right order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.sampling.grids import continuous as grids
from jaxdiff.sampling.loop import integrate, sample
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M, DpmSolver3M
from jaxdiff.sampling.samplers.dpm_solver_single import DpmSolver2, DpmSolver2S, DpmSolver3
from jaxdiff.sampling.samplers.heun import Heun
from tests.oracles import Counting, Gaussian
from tests.sampling.solving import GRIDS, OTHERS, POINTS, VE, denoiser, errors, gaussian, orders, start, walk

FIRST, SECOND, THIRD = (0.95, 1.05), (1.9, 2.1), (2.8, 3.3)
SAMPLERS = [
    (Ddim(), FIRST),
    (Heun(), SECOND),
    (DpmSolver2(r=0.8), SECOND),
    (DpmSolver2S(), SECOND),
    (DpmSolver3(), THIRD),
    (DpmSolver2M(), SECOND),
    (DpmSolver2M(rule="heun"), SECOND),
    (DpmSolver2M(integrand="noise"), SECOND),
    (DpmSolver3M(), THIRD),
    (DpmSolver3M(integrand="noise"), THIRD),
    (DpmSolver3M(compat=True), SECOND),
]
each_sampler = pytest.mark.parametrize("sampler", [sampler for sampler, _ in SAMPLERS], ids=str)


@pytest.mark.spread(1)
@pytest.mark.parametrize(("sampler", "band"), SAMPLERS, ids=str)
def test_order_of_convergence(sampler, band):
    """On two grids and two data sets, one of them with a nonlinear score."""
    steps = 384 if band == THIRD else 96  # third order shows itself later
    found = orders(sampler, steps)
    assert np.all((band[0] < found) & (found < band[1])), found
    assert np.all(errors(sampler, steps) < 0.1)


@pytest.mark.spread(3)
@pytest.mark.parametrize("process", OTHERS, ids=str)
@each_sampler
def test_every_process_gives_the_same_path(sampler, process):
    """``x / alpha`` depends on the noise levels ``sigma / alpha`` only."""
    x = start()
    first, last = process.signal(GRIDS[0](process, 2)).alpha
    expected = walk(sampler, denoiser(VE), VE, GRIDS[0](VE, 4), x)[-1]
    found = walk(sampler, denoiser(process), process, GRIDS[0](process, 4), first * x)[-1]
    np.testing.assert_allclose(found / last, expected, rtol=1e-8, atol=1e-9)


@each_sampler
def test_a_single_image_is_reached_exactly_from_pure_noise(sampler):
    """Its ODE is linear in the coordinates of every solver; nothing is divided by alpha = 0."""
    x, flow, oracle = start()[:POINTS], RectifiedFlow(), Gaussian(gaussian().mean, jnp.zeros(()))
    times = grids.Uniform()(flow, 4)
    found = walk(sampler, oracle.denoiser(flow), flow, times, x)[-1]
    np.testing.assert_allclose(found, oracle.flow(flow, x, times[0], times[-1]), rtol=1e-9, atol=1e-9)


@each_sampler
def test_from_pure_noise_the_first_step_is_an_euler_step(sampler):
    """A prediction from pure noise is infinitely far away in log-SNR, so the next step has no slope from it."""
    flow, x = RectifiedFlow(), start()[:POINTS]
    times, denoise = jnp.asarray([1.0, 0.8, 0.6]), gaussian().denoiser(flow)
    _, second, third = walk(sampler, denoise, flow, times, x)
    np.testing.assert_allclose(second, walk(Ddim(), denoise, flow, times[:2], x)[-1], rtol=1e-12)
    np.testing.assert_allclose(
        third, walk(sampler, denoise, flow, times[1:], jnp.asarray(second))[-1], rtol=1e-12
    )


@pytest.mark.parametrize("sampler", [Heun(), DpmSolver3M()], ids=str)
def test_the_last_step_is_the_predicted_image(sampler):
    x, denoise, times = start()[:POINTS], gaussian().denoiser(VE), GRIDS[0](VE, 3)
    keys = jax.random.split(jax.random.key(0), POINTS)
    before = integrate(sampler, denoise, VE, times, x, keys)
    found = sample(sampler, denoise, VE, times, x, keys)
    np.testing.assert_allclose(found, denoise(before, times[-1]).x_0, rtol=1e-12)


@each_sampler
def test_calls_are_counted(sampler):
    denoise = Counting(gaussian().denoiser(VE))
    walk(sampler, denoise, VE, GRIDS[0](VE, 4), start()[:POINTS])
    assert denoise.calls == sampler.calls(3)
