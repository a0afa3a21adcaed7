"""Distribution of stochastic samplers on Gaussian data: the right limit, and convergence of the stated weak order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Linear
from jaxdiff.sampling.grids import continuous as grids
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.noise import fold_in, noise_like
from jaxdiff.sampling.protocols import adds_noise
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.consistency import Consistency
from jaxdiff.sampling.samplers.ddim import Ddim, EulerAncestral
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver1, DpmSolver2M, DpmSolver3M
from jaxdiff.sampling.samplers.dpm_solver_single import DpmSolver2, DpmSolver2S, DpmSolverSde
from jaxdiff.sampling.samplers.heun import Euler, Heun
from jaxdiff.sampling.samplers.sa_solver import SaSolver
from tests.sampling.affine import MOST, VP, data, marginal, moments, relative_errors
from tests.sampling.solving import GRIDS, walk

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


@pytest.mark.spread(3)
@pytest.mark.parametrize(("sampler", "draws", "eta", "variance_order", "gain_order"), CASES, ids=str)
def test_the_distribution_is_reached_at_the_weak_order(sampler, draws, eta, variance_order, gain_order):
    """The mean is exact, since the predicted image of the mean is the mean, at every noise level."""
    few, many = (relative_errors(sampler, VP, steps, draws, eta) for steps in (MOST // 2, MOST))
    assert few[0] < 1e-12
    assert many[1] < 0.05
    assert abs(np.log2(few[1] / many[1]) - variance_order) < 0.2
    if gain_order is None:  # that of a posterior, which is exact on Gaussian data
        assert few[2] < 1e-11
    else:
        assert abs(np.log2(few[2] / many[2]) - gain_order) < 0.2


TAKERS = [Ddim(0.5), EulerAncestral(), Ancestral("small"), Consistency(), SaSolver(tau=0.7), DpmSolver1(1.0),
          DpmSolver2M(1.0), DpmSolver3M(0.5), DpmSolver2(eta=0.5), DpmSolver2S(eta=1.0)]  # fmt: skip


@pytest.mark.parametrize("sampler", TAKERS, ids=str)
def test_noise_of_the_steps_can_be_given(sampler):
    """Draws that equal those of the keys give the same sample, and other draws another."""
    process, keys, shape = VarianceExploding(), jax.random.split(jax.random.key(0), 2), (3, 2, 1)
    recipe = Recipe(sampler, grids.Karras(0.02, 20.0), ClassifierFree(), steps=6)
    assert adds_noise(sampler)
    own = jnp.stack([noise_like(fold_in(keys, step), jnp.zeros((2, *shape))) for step in range(5)])
    assert recipe.draws_of_steps(process) == len(own)

    def sample(draws):
        return recipe(lambda x, t, *_: data_prediction(x, t, process), process, {}, shape, keys, draws=draws)

    expected = sample(None)
    np.testing.assert_allclose(sample(own), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(sample(own[::-1]) - expected).max() > 1e-3


def data_prediction(x, t, process):
    """Of standard normal data."""
    alpha, sigma = process.signal(t)
    x_0 = alpha * x / (alpha**2 + sigma**2)
    return Prediction(x_0, (x - alpha * x_0) / sigma)


@pytest.mark.parametrize(
    ("sampler", "noisy"),
    [(Euler(), False), (Euler(churn=0.1), True), (Heun(), False), (DpmSolver2M(), False), (DpmSolverSde(), True),
     (DpmSolverSde(eta=0.0), False), (SaSolver(tau=0.0), False), (Ddim(), False)],
    ids=str,
)  # fmt: skip
def test_samplers_with_noise(sampler, noisy):
    assert adds_noise(sampler) == noisy


@pytest.mark.parametrize(("sampler", "order"), [(Euler, 1), (Heun, 2)])
def test_churn_keeps_the_distribution(sampler, order):
    """A total of churn that is shared among the steps, as in Karras et al. 2022."""
    few, many = (relative_errors(sampler(churn=2 / steps), VP, steps, 1, 0.0) for steps in (MOST // 2, MOST))
    assert many[1] < 0.05
    assert abs(np.log2(few[1] / many[1]) - order) < 0.2


@pytest.mark.parametrize(
    ("process", "grid"),
    [
        (VariancePreserving(Linear(beta_max=5.0)), grids.Uniform()),
        (RectifiedFlow(), grids.Uniform()),
        (VarianceExploding(), grids.Karras(0.002, 20.0)),
    ],
    ids=["vp", "flow", "ve"],
)
def test_prior_mismatch_is_the_closed_form(process, grid):
    """Samples start from N(0, sigma^2), without the remaining mean of the data at the first time.

    The flow then ends at the mean minus ``alpha_1 mean std_0 / std_1``, for any number of steps. The error is 0 only
    for alpha_1 = 0.
    """
    steps = 200
    times = jnp.append(grid(process, steps), process.time(jnp.asarray(2 * np.log(1000.0))))
    alpha, sigma = process.signal(times[0])
    mean, variance, _ = moments(Heun(), process, times, steps, 1, (0.0, sigma**2))
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
