"""UniPC: the orders of the paper, and what it has in common with DPM-Solver++."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.sampling.protocols import SamplerState, stateless
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.sampling.samplers.exponential import length
from jaxdiff.sampling.samplers.multistep import Past
from jaxdiff.sampling.samplers.sa_solver import History, SaSolver
from jaxdiff.sampling.samplers.unipc import UniPc
from tests.sampling.solving import GRIDS, QUICK, VE, denoiser, errors, flow, orders, start, truth, walk


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("sampler", "order", "steps"),
    [
        (UniPc(1), 2, 96),
        (UniPc(1, "bh1", integrand="noise"), 2, 96),
        (UniPc(2), 3, 96),
        (UniPc(2, "bh1"), 3, 96),
        (UniPc(2, integrand="noise"), 3, 96),
        (UniPc(3), 4, 96),
        (UniPc(2, corrector=False), 2, 96),
    ],
    ids=str,
)
def test_order_of_convergence(sampler, order, steps):
    """The corrector is worth one order, and mends the steps of the start too (Zhao et al. 2023, theorem 3.1).

    At the noise level where these grids begin, the predicted image hardly changes in the first step.
    """
    found = orders(sampler, steps)
    assert np.all(np.abs(found - order) < 0.15), found


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", ["exact", "bh1", "bh2"])
@pytest.mark.parametrize("integrand", ["x_0", "noise"])
def test_fourth_order_from_exact_starting_values(integrand, rule):
    """What theorem 3.1 is about: the method, where the predictions before its first step are those of the exact path.

    In a run of its own the first step has a line only, whose one error of third order is all that there is to see with
    noise as the integrand. With these values the band is that of the other orders, whatever B(h).
    """
    sampler = SaSolver(3, 4, tau=0.0, integrand=integrand, rule=rule)
    x = start()
    keys = jax.random.split(jax.random.key(0), len(x))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(times, known):
        predictions = [denoiser(VE)(image, t) for image, t in zip(known[:3], times[:3], strict=True)]
        lengths = [length(VE, t, t_next) for t, t_next in itertools.pairwise(times[:4])]
        values = tuple(getattr(one, integrand) for one in predictions)
        signal = VE.signal(times[3])
        first_order = signal.alpha * predictions[-1].x_0 + signal.sigma * predictions[-1].noise
        past = Past(values[::-1], tuple(lengths[::-1]))
        history = History(past, known[3] - first_order, jnp.ones(()))

        def step(state, pair):
            return sampler.step(stateless(denoiser(VE)).call, VE, state, *pair, keys), None

        return jax.lax.scan(step, SamplerState(known[3], history), (times[3:-1], times[4:]))[0].x

    def error(grid, steps):
        times = grid(VE, steps + 1)
        known = flow(VE.signal(times[:4]).sigma)
        square = (np.asarray(run(times, known)) - truth()) ** 2
        return np.sqrt(square.reshape(2, -1).mean(-1))

    found = np.array([np.log2(error(grid, 192) / error(grid, 384)) for grid in GRIDS])
    assert np.all(np.abs(found - 4) < 0.15), found


def test_the_corrector_reduces_the_error():
    assert np.all(errors(UniPc(2), 96) < errors(UniPc(2, corrector=False), 96) / 5)


@pytest.mark.parametrize("integrand", ["x_0", "noise"])
def test_without_the_corrector_the_second_order_is_dpm_solvers(integrand):
    """The midpoint rule of DPM-Solver++(2M) is UniP-2 with B(h) = exp(h) - 1."""
    times = GRIDS[0](VE, 7)
    found = walk(UniPc(2, corrector=False, integrand=integrand), denoiser(VE), VE, times, start())
    expected = walk(DpmSolver2M(integrand=integrand), denoiser(VE), VE, times, start())
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)


def test_without_the_corrector_the_first_order_is_ddim():
    times = GRIDS[0](VE, 5)
    found, expected = (
        walk(one, denoiser(VE), VE, times, start()) for one in (UniPc(1, corrector=False), Ddim())
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.spread(1)
@pytest.mark.parametrize("integrand", ["x_0", "noise"])
def test_b_of_h_matters_between_two_predictions_only(integrand):
    """With three predictions, a step and its correction are exact for every B(h)."""
    times, x = GRIDS[0](VE, 7), start()
    one, *others = (
        UniPc(3, integrand=integrand),
        UniPc(3, "bh1", integrand=integrand),
        SaSolver(3, 4, tau=0.0, integrand=integrand),
    )
    keys, state = jax.random.split(jax.random.key(0), len(x)), one.init(x)
    for k in range(3):
        state = one.step(stateless(denoiser(VE)).call, VE, state, times[k], times[k + 1], keys)
    later, whole = (
        [walk(sampler, denoiser(VE), VE, *run)[-1] for sampler in (one, *others)]
        for run in ((times[3:], x, (), state), (times, x))
    )
    np.testing.assert_allclose(later, [later[0]] * 3, rtol=1e-10, atol=1e-11)
    for other in whole[1:]:
        assert np.abs(other - whole[0]).max() > 1e-5


def test_a_correction_is_the_exact_integral_of_a_parabola():
    """The predicted image is a parabola in lambda: UniP-2 uses its slope only, UniPC-2 is exact."""

    def image(lam):
        return 0.3 + lam * (0.7 - 1.1 * lam)

    def denoise(x, t):
        x_0 = jnp.broadcast_to(image(VE.log_snr(t) / 2), x.shape)
        return denoiser(VE)(x, t)._replace(x_0=x_0, noise=(x - x_0) / VE.signal(t).sigma)

    lam = np.array([-1.0, -0.7, -0.2, 0.1, 0.5])
    times = VE.time(jnp.asarray(2 * lam))
    x, solver = jnp.ones_like(start()), UniPc(2)
    keys = jax.random.split(jax.random.key(0), len(x))
    state = solver.init(x)
    corrected = []
    for k in range(4):
        after = solver.step(stateless(denoise).call, VE, state, times[k], times[k + 1], keys)
        # Without what the predictor added, the step is that of first order from the corrected images.
        first_order = after.x - after.history.added
        sigma, sigma_next = np.exp(-lam[k]), np.exp(-lam[k + 1])
        corrected.append((first_order - (1 - sigma_next / sigma) * image(lam[k])) * sigma / sigma_next)
        state = after
    nodes, weights = np.polynomial.legendre.leggauss(20)
    for k in range(1, 3):  # the first step is mended by a line only
        half = (lam[k + 1] - lam[k]) / 2
        u = lam[k] + half * (nodes + 1)
        exact = corrected[k] * np.exp(lam[k] - lam[k + 1]) + half * np.dot(
            weights, np.exp(u - lam[k + 1]) * image(u)
        )
        np.testing.assert_allclose(corrected[k + 1], exact, rtol=1e-10)
