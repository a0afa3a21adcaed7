"""The law of stochastic samplers on Gaussian data, exactly: a sampler is affine in its start and in what it draws.

So each start and each draw moves the result by a number, found by setting that one to 1 and the others to 0. Mean and
variance follow without any random number.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian
from solving import GRIDS, QUICK, Draws, walk

from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine, Linear
from jaxdiff.sampling import grids
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import Ddim, EulerAncestral
from jaxdiff.sampling.dpm_solver import DpmSolver1, DpmSolver2M, DpmSolver3M
from jaxdiff.sampling.dpm_solver_single import DpmSolver2, DpmSolver2S, DpmSolverSde
from jaxdiff.sampling.heun import Euler, Heun

MEAN, STD = 0.7, 0.5
VP = VariancePreserving(Cosine())
MOST = 120  # steps


def data() -> Gaussian:
    return Gaussian(jnp.asarray(MEAN), jnp.asarray(STD))


@functools.partial(jax.jit, static_argnums=(0, 1, 4), compiler_options=QUICK)
def law(sampler, process, times, steps, draws: int, start):
    """Mean and variance after so many steps, from those at the first time; and how much a start moves the result.

    The times may be more than the steps need, so that runs of several lengths are one program.
    """
    # Image 0 starts at 0 and draws 0; image 1 starts at 1; each of the others draws a single 1.
    size = 2 + (len(times) - 1) * draws
    x = jnp.zeros((size, 1, 1, 1)).at[1].set(1.0)
    keys = jax.random.split(jax.random.key(0), size)

    def step(k, state):
        with Draws([jnp.zeros_like(x).at[2 + k * draws + j].set(1.0) for j in range(draws)]):
            return sampler.step(data().denoiser(process), process, state, times[k], times[k + 1], keys)

    state = jax.lax.fori_loop(0, steps, step, sampler.init(x))
    offset, moved = state.x[0, 0, 0, 0], state.x[1:, 0, 0, 0]
    gain = moved - offset
    mean, variance = start
    return offset + gain[0] * mean, gain[0] ** 2 * variance + jnp.sum(gain[1:] ** 2), gain[0]


def marginal(process, t):
    alpha, sigma = process.signal(t)
    return alpha * MEAN, alpha**2 * STD**2 + sigma**2


def exact_gain(process, t, t_next, eta):
    """How much x at t moves the mean of x at t_next.

    In the flow by the ratio of their standard deviations, in the reverse SDE by their regression; the drift, and so
    the logarithm, is linear in eta between and beyond the two.
    """
    (_, variance), (_, variance_next) = marginal(process, t), marginal(process, t_next)
    flow = jnp.sqrt(variance_next / variance)
    alpha, alpha_next = process.signal(t).alpha, process.signal(t_next).alpha
    return flow * (alpha / alpha_next * flow) ** eta


def misses(sampler, process, steps: int, draws: int, eta: float) -> np.ndarray:
    """Relative errors of mean, variance and gain at the end, from the exact law at the start."""
    times = GRIDS[0](process, steps + 1)
    padded = jnp.pad(times, (0, MOST - steps), mode="edge")
    found = law(sampler, process, padded, steps, draws, marginal(process, times[0]))
    truth = (*marginal(process, times[-1]), exact_gain(process, times[0], times[-1], eta))
    return np.abs(np.divide(found, truth) - 1)


CASES = [
    # sampler, draws in a step, eta of its SDE, orders of the variance and of the gain
    (Ddim(0.5), 1, 0.25, 1, 1),
    (Ancestral("small"), 1, 1.0, 1, None),
    (Ancestral("large"), 1, 1.0, 1, None),
    (DpmSolver1(0.5), 1, 0.5, 1, 1),
    (DpmSolver1(0.5, "noise"), 1, 0.5, 1, 1),
    (DpmSolver2M(1.0), 1, 1.0, 2, None),
    (DpmSolver2M(0.5, rule="heun"), 1, 0.5, 2, 2),
    (DpmSolver2M(0.5, "noise"), 1, 0.5, 2, 2),
    (DpmSolver3M(1.0), 1, 1.0, 2, None),
    (DpmSolver3M(0.5, "noise"), 1, 0.5, 2, 3),
    (DpmSolver2(eta=0.5), 1, 0.25, 2, 1),
    (DpmSolver2S(eta=1.0), 1, 1.0, 2, 1),
    (DpmSolverSde(), 2, 1.0, 2, None),
    (DpmSolverSde(0.7, 0.5), 2, 0.25, 2, 1),
]


@pytest.mark.parametrize(("sampler", "draws", "eta", "variance_order", "gain_order"), CASES, ids=str)
def test_the_law_is_right_and_reached_at_the_weak_order(sampler, draws, eta, variance_order, gain_order):
    """The mean is exact, since the predicted image of the mean is the mean, at every noise level."""
    few, many = (misses(sampler, VP, steps, draws, eta) for steps in (MOST // 2, MOST))
    assert few[0] < 1e-12
    assert many[1] < 0.05
    assert abs(np.log2(few[1] / many[1]) - variance_order) < 0.2
    if gain_order is None:  # that of a posterior, which is exact on Gaussian data
        assert few[2] < 1e-11
    else:
        assert abs(np.log2(few[2] / many[2]) - gain_order) < 0.2


@pytest.mark.parametrize(("sampler", "order"), [(Euler, 1), (Heun, 2)])
def test_churn_keeps_the_law(sampler, order):
    """A total of churn that is shared among the steps, as in Karras et al. 2022."""
    few, many = (misses(sampler(churn=2 / steps), VP, steps, 1, 0.0) for steps in (MOST // 2, MOST))
    assert many[1] < 0.05
    assert abs(np.log2(few[1] / many[1]) - order) < 0.2


@pytest.mark.parametrize(
    ("process", "grid"),
    [(VariancePreserving(Linear(beta_max=5.0)), grids.Uniform()), (RectifiedFlow(), grids.Uniform()),
     (VarianceExploding(), grids.Karras(0.002, 20.0))],
    ids=["vp", "flow", "ve"],
)  # fmt: skip
def test_prior_mismatch_is_the_closed_form(process, grid):
    """Samples start from N(0, sigma^2). What is left of the data's mean at the first time is missing for ever.

    The flow then ends at the mean less ``alpha_1 mean std_0 / std_1``, however many steps are taken; only where
    alpha_1 = 0 is nothing missing.
    """
    steps = 200
    times = jnp.append(grid(process, steps), process.time(jnp.asarray(2 * np.log(1000.0))))
    alpha, sigma = process.signal(times[0])
    mean, variance, _ = law(Heun(), process, times, steps, 1, (0.0, sigma**2))
    (first, first_variance), (last, last_variance) = marginal(process, times[0]), marginal(process, times[-1])
    shrink = jnp.sqrt(last_variance / first_variance)
    np.testing.assert_allclose(mean, last - first * shrink, atol=2e-5)
    np.testing.assert_allclose(variance, (sigma * shrink) ** 2, rtol=1e-3)
    missing = abs(float(mean / last) - 1)
    assert missing < 1e-4 if alpha == 0 else missing > 1e-2


@pytest.mark.parametrize(
    ("noisy", "still"),
    [
        (EulerAncestral(0.0), Ddim()),
        (DpmSolver1(0.0), Ddim()),
        (DpmSolver1(0.0, "noise"), Ddim()),
        (DpmSolverSde(eta=0.0), DpmSolver2S()),
    ],
    ids=str,
)
def test_without_eta_nothing_is_random(noisy, still):
    times = GRIDS[0](VP, 6)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1)))
    drawn = np.random.default_rng(1).normal(size=(20, *x.shape))
    found, expected = (walk(one, data().denoiser(VP), VP, times, x, drawn)[-1] for one in (noisy, still))
    np.testing.assert_array_equal(found, expected)
