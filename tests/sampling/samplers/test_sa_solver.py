"""SA-Solver: its exact distribution, by affine propagation, and its special cases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.sampling.protocols import stateless
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver1, DpmSolver2M
from jaxdiff.sampling.samplers.sa_solver import SaSolver
from tests.sampling.affine import MOST, VP, data, relative_errors
from tests.sampling.solving import GRIDS, VE, Draws, denoiser, start, walk

DRAWN = np.random.default_rng(3).normal(size=(12, 32, 1, 1, 2))


@pytest.mark.spread(2)
@pytest.mark.parametrize("integrand", ["x_0", "noise"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_special_cases_are_dpm_solvers(integrand, eta):
    """With one and with two predictions and no corrector, where ``tau^2`` is eta."""
    times, tau = GRIDS[0](VE, 6), math.sqrt(eta)
    for sampler, expected in (
        (SaSolver(1, 0, tau, integrand=integrand), DpmSolver1(eta, integrand)),
        (SaSolver(2, 0, tau, integrand=integrand), DpmSolver2M(eta, integrand, "heun")),
        (SaSolver(2, 0, tau, integrand=integrand, rule="bh2"), DpmSolver2M(eta, integrand, "midpoint")),
    ):
        found, known = (walk(one, denoiser(VE), VE, times, start(), DRAWN) for one in (sampler, expected))
        np.testing.assert_allclose(found, known, rtol=1e-9, atol=1e-10)


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("sampler", "gain_order"),
    [
        (SaSolver(1, 2, 0.6), 2),
        (SaSolver(2, 0, 0.6), 2),
        (SaSolver(3, 4, 0.6), 4),
        (SaSolver(3, 4, 0.6, integrand="noise"), 3),
        (
            SaSolver(3, 4, 0.6, rule="bh1"),
            4,
        ),  # a rule for two predictions leaves polynomials through more alone
        (SaSolver(3, 4, 0.6, rule="bh2"), 4),
        (SaSolver(3, 4, 1.0), None),
    ],
    ids=str,
)
def test_the_distribution_is_reached_at_the_weak_order(sampler, gain_order):
    """The mean is exact; the variance is of second order, since what is drawn within a step is not resolved.

    The gain, how much a start moves the result, is of the order of the polynomials. With the noise as integrand the
    first step, where there is none, is what is left.
    """
    few, many = (relative_errors(sampler, VP, steps, 1, sampler.tau**2) for steps in (MOST // 2, MOST))
    assert few[0] < 1e-12
    assert many[1] < 0.01
    assert abs(np.log2(few[1] / many[1]) - 2) < 0.4
    if gain_order is None:  # that of a posterior, which is exact on Gaussian data
        assert few[2] < 1e-11
    else:
        assert abs(np.log2(few[2] / many[2]) - gain_order) < 0.25


def test_noise_is_added_in_its_interval_only():
    """Step by step, as a sampler that adds it always or never, on the levels between two bounds."""
    times = GRIDS[0](VE, 7)
    levels = np.asarray(VE.signal(times).sigma)
    low, high = float(levels[4]) * 0.99, float(levels[2]) * 1.01
    found = walk(SaSolver(tau=0.8, tau_min=low, tau_max=high), denoiser(VE), VE, times, start(), DRAWN)
    state, expected = SaSolver().init(start()), [start()]
    keys = jax.random.split(jax.random.key(0), len(state.x))
    with Draws(DRAWN):
        for k in range(6):
            noisy = SaSolver(tau=0.8, tau_max=math.inf) if 2 <= k <= 4 else SaSolver(tau=0.8, tau_max=1e-3)
            state = noisy.step(stateless(denoiser(VE)).call, VE, state, times[k], times[k + 1], keys)
            expected.append(state.x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    still = walk(SaSolver(tau=0.8, tau_max=1e-3), denoiser(VE), VE, times, start(), DRAWN)
    np.testing.assert_allclose(still, walk(SaSolver(tau=0.0), denoiser(VE), VE, times, start()), rtol=1e-12)
    np.testing.assert_allclose(found[:3], still[:3], rtol=1e-12)
    assert np.abs(np.asarray(found[3]) - still[3]).max() > 0.1


def test_from_pure_noise():
    """All noise is drawn again if the interval includes pure noise, otherwise none."""
    flow, x = RectifiedFlow(), start()[:4]
    times, denoise = jnp.asarray([1.0, 0.6, 0.4]), data().denoiser(flow)
    predicted = denoise(x, times[0])
    still = walk(SaSolver(), denoise, flow, times, x, DRAWN[:, :4])
    fresh = walk(SaSolver(tau_max=math.inf), denoise, flow, times, x, DRAWN[:, :4])
    np.testing.assert_allclose(still[1], 0.4 * predicted.x_0 + 0.6 * predicted.noise, rtol=1e-12)
    np.testing.assert_allclose(fresh[1], 0.4 * predicted.x_0 + 0.6 * DRAWN[0, :4], rtol=1e-12)
    assert np.all(np.isfinite([fresh[2], still[2]]))
