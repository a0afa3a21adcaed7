"""Consistency objectives on Gaussian data, where the consistency function and the trajectories have closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving, diffuse, expand
from jaxdiff.process.prediction import Edm, Prediction
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import Uniform
from jaxdiff.process.weighting import Edm as EdmWeighting
from jaxdiff.process.weighting import Flat
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.samplers.heun import Heun
from jaxdiff.tasks.consistency_models import (
    TEACHER,
    ConsistencyDistillation,
    ConsistencyTuning,
    KarrasGap,
    ShrinkingGap,
)
from jaxdiff.tasks.distances import PseudoHuber, Squared
from jaxdiff.tasks.objectives import LossInputs, Model

STD = 0.7
PROCESSES = [VarianceExploding(), VariancePreserving(Cosine()), RectifiedFlow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)


@dataclasses.dataclass(frozen=True)
class Share:
    """r is a constant share of t."""

    share: float

    def __call__(self, ratio, step):
        return self.share * ratio


@dataclasses.dataclass(frozen=True)
class Nowhere:
    """Weights that tests give directly."""

    def read(self):
        return {}

    def describe(self):
        return "nowhere"


def pair(process, x_t, t, x_0):
    alpha, sigma = (expand(factor, x_t) for factor in process.signal(t))
    return Prediction(x_0, (x_t - alpha * x_0) / sigma)


def posterior_mean(params, x_t, t, drop, train, process):
    """The denoiser of N(0, std^2), with the standard deviation that belongs to the condition."""
    alpha, sigma = (expand(factor, x_t) for factor in process.signal(t))
    variance = expand(jnp.square(jnp.where(drop["label"], params["all"], params["class"])), x_t)
    return pair(process, x_t, t, alpha * variance * x_t / (alpha**2 * variance + sigma**2))


def consistency_function(process, x_t, t):
    """The end of the trajectory of N(0, STD^2): the marginal's standard deviation is scaled to STD."""
    alpha, sigma = (expand(factor, x_t) for factor in process.signal(t))
    return STD * x_t / jnp.sqrt(alpha**2 * STD**2 + sigma**2)


def inputs(process, student, t=(0.3, 0.5, 0.7, 0.9), teacher=None, step=0):
    """A batch of N(0, STD^2) data for a student ``(x_t, t) -> x_0``, given in the target space of EDM."""
    t = jnp.asarray(t)
    x_0, noise = (jnp.asarray(v) for v in np.random.default_rng(0).standard_normal((2, len(t), 3, 2, 1)))
    x_0 = STD * x_0
    x_t = diffuse(process, x_0, noise, t)

    def predict(params, x, time, until, drop, train):
        if params is not None:
            return posterior_mean(params, x, time, drop, train, process)
        return pair(process, x, time, student(x, time))

    edm = Edm(sigma_data=STD)
    a, b = (expand(value, x_t) for value in edm.row(process, t))
    found = pair(process, x_t, t, student(x_t, t))
    drop = {"label": jnp.zeros(len(t), bool)}
    model = Model(predict, None, {}, drop, {TEACHER: teacher}, jnp.asarray(step), True)
    output = a * found.x_0 + b * found.noise
    return LossInputs(process, edm, Uniform(), t, t, x_0, noise, x_t, output, model=model)


EXACT = {"class": STD, "all": STD}


@pytest.mark.spread(1)
@each_process
def test_the_consistency_function_agrees_along_the_teachers_trajectory_at_third_order(process):
    """The local error of Heun's method: eight times smaller for half the step."""

    def difference(share):
        objective = ConsistencyDistillation(Nowhere(), gap=Share(share), distance=Squared())
        student = lambda x, t: consistency_function(process, x, t)  # noqa: E731
        return objective(inputs(process, student, teacher=EXACT))[1]["difference"]

    large, small = np.sqrt(difference(0.9)), np.sqrt(difference(0.95))
    assert 6 < large / small < 10
    assert small < 1e-4


@pytest.mark.spread(1)
@each_process
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_neighbour_is_a_step_of_heuns_sampler_with_classifier_free_guidance(process, guidance):
    params = {"class": 0.4, "all": 0.9}
    objective = ConsistencyDistillation(Nowhere(), guidance, Share(0.6), Squared())
    seen = inputs(process, lambda x, t: x, teacher=params)  # so that x_t and x_r are compared
    _, metrics = objective(seen)
    key = jax.random.split(jax.random.key(0), 1)

    def denoise(x, t, conditions, drop):
        return posterior_mean(params, x, jnp.full(len(x), t), drop, False, process)

    found = []
    for x_t, t in zip(seen.x_t[:, None], seen.t, strict=True):
        guided = ClassifierFree(guidance)(denoise, process, {"label": jnp.zeros(1, int)}, key)
        state = Heun().init(x_t)._replace(guidance=guided.init(x_t))
        r = process.time(process.log_snr(t) - 2 * jnp.log(0.6))
        found.append(jnp.mean(jnp.square(x_t - Heun().step(guided.call, process, state, t, r, key).x)))
    np.testing.assert_allclose(metrics["difference"], np.mean(found), rtol=1e-9)


@each_process
def test_tuning_has_its_optimum_at_the_best_guess_of_the_neighbours_prediction(process):
    """The best linear f(x_t) of a f(x_r): its coefficient is a cov(x_r, x_t) / var(x_t), from sums over all data."""
    near, t = 0.4 * np.ones(1), jnp.asarray([0.6])
    ratio = jnp.exp(-process.log_snr(t) / 2)
    r = process.time(-2 * jnp.log(near * ratio))
    (alpha, sigma), (alpha_r, sigma_r) = process.signal(t), process.signal(r)
    below = 0.8
    best = below * (alpha * alpha_r * STD**2 + sigma * sigma_r) / (alpha**2 * STD**2 + sigma**2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    x_0, noise = (jnp.asarray(v.reshape(-1, 1, 1, 1)) for v in np.meshgrid(STD * nodes, nodes))
    share = jnp.asarray(np.outer(weights, weights).ravel() / weights.sum() ** 2)
    times = jnp.broadcast_to(t, (9,))
    x_t = diffuse(process, x_0, noise, times)

    def loss(coefficient):
        seen = inputs(process, lambda x, time: below * x, t=[0.6] * 9)
        found = pair(process, x_t, times, coefficient * x_t)
        a, b = (expand(value, x_t) for value in seen.parameterization.row(process, times))
        output = a * found.x_0 + b * found.noise
        seen = dataclasses.replace(seen, x_0=x_0, noise=noise, x_t=x_t, output=output)
        return jnp.sum(share * ConsistencyTuning(Share(0.4), Squared())(seen)[0])

    slope = jax.grad(loss)
    np.testing.assert_allclose(slope(best[0]), 0, atol=1e-9)
    assert slope(best[0] + 0.1) > 1e-3 > -1e-3 > slope(best[0] - 0.1)


@each_process
@pytest.mark.parametrize("distance", [Squared(), PseudoHuber(0.1)], ids=str)
def test_at_the_same_level_there_is_neither_a_loss_nor_a_gradient(process, distance):
    def loss(scale):
        seen = inputs(process, lambda x, t: 0.5 * x)
        own = dataclasses.replace(seen, output=scale * seen.output)
        return jnp.sum(ConsistencyTuning(Share(1.0), distance)(own)[0])

    value, slope = jax.value_and_grad(loss)(1.0)
    np.testing.assert_allclose(value, 0, atol=1e-9)
    assert np.isfinite(slope)


def test_the_prediction_at_the_neighbour_is_a_constant_for_the_gradient():
    process, objective = VarianceExploding(), ConsistencyTuning(Share(0.5), Squared())

    def loss(scale, of_neighbour):
        seen = inputs(process, lambda x, t: of_neighbour * x)
        found = pair(process, seen.x_t, seen.t, scale * seen.x_t)
        a, b = (expand(value, seen.x_t) for value in seen.parameterization.row(process, seen.t))
        return jnp.sum(objective(dataclasses.replace(seen, output=a * found.x_0 + b * found.noise))[0])

    slope = jax.grad(loss)(0.5, 0.5)
    np.testing.assert_allclose(jax.grad(lambda scale: loss(scale, scale))(0.5), slope, rtol=1e-12)
    assert abs(slope) > 1e-3


@each_process
def test_next_to_the_data_the_data_are_learned(process):
    seen = inputs(process, lambda x, t: 0.5 * x)
    losses, _ = ConsistencyTuning(Share(0.0), Squared())(seen)
    ratio = np.exp(-np.asarray(process.log_snr(seen.t)) / 2)
    error = np.square(0.5 * seen.x_t - seen.x_0).mean((1, 2, 3))
    np.testing.assert_allclose(losses, error / ratio, rtol=1e-9)


@each_process
def test_a_weighting_by_noise_level_replaces_the_inverse_of_the_gap(process):
    seen = inputs(process, lambda x, t: 0.5 * x)
    losses, _ = ConsistencyTuning(Share(0.0), Squared(), EdmWeighting(0.5))(seen)
    ratio = np.exp(-np.asarray(process.log_snr(seen.t)) / 2)
    error = np.square(0.5 * seen.x_t - seen.x_0).mean((1, 2, 3))
    np.testing.assert_allclose(losses, error * (ratio**2 + 0.25) / (0.5 * ratio) ** 2, rtol=1e-9)
    with pytest.raises(UserError, match=r"weighting=.*expected a weighting of the error of x_0"):
        ConsistencyTuning(Share(0.0), weighting=Flat())


def test_the_gap_is_the_papers_and_shrinks_by_q_at_each_stage():
    gap, ratio = ShrinkingGap(stage_steps=100, q=2.0), jnp.asarray([0.01, 0.5, 2.0, 80.0])
    n = 1 + 8 / (1 + np.exp(np.asarray(ratio)))
    for step, stage in ((0, 1), (99, 1), (100, 2), (450, 5)):
        expected = np.asarray(ratio) * np.maximum(1 - n / 2.0**stage, 0)
        np.testing.assert_allclose(gap(ratio, jnp.asarray(step)), expected, rtol=1e-12)
    last = dataclasses.replace(gap, stages=3)
    np.testing.assert_array_equal(last(ratio, jnp.asarray(10_000)), gap(ratio, jnp.asarray(250)))


def test_repeated_gaps_of_karras_are_its_grid():
    process = VarianceExploding()
    grid = np.exp(-np.asarray(process.log_snr(Karras(0.002, 80.0)(process, 19))) / 2)
    gap, found = KarrasGap(18), [jnp.asarray([80.0])]
    for _ in range(18):
        found.append(gap(found[-1], jnp.asarray(0)))
    np.testing.assert_allclose(np.ravel(found), grid, rtol=1e-9)
    below = jnp.asarray([0.0005, 0.0019])
    np.testing.assert_array_equal(gap(below, jnp.asarray(0)), below)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShrinkingGap(stage_steps=0), "stage_steps=0"),
        (lambda: ShrinkingGap(10, q=1.0), "q=1.0: expected a finite number above 1"),
        (lambda: ShrinkingGap(10, k=-1.0), "k=-1.0"),
        (lambda: ShrinkingGap(10, q=float("inf")), "q=inf"),
        (lambda: ShrinkingGap(10, stages=0), "stages=0"),
        (lambda: KarrasGap(0), "steps=0"),
        (
            lambda: KarrasGap(sigma_min=80.0, sigma_max=0.002),
            "sigma_max=0.002: expected a level above sigma_min=80",
        ),
        (lambda: ConsistencyDistillation(Nowhere(), guidance=float("nan")), "guidance=nan"),
        (lambda: ConsistencyDistillation(Nowhere(), guidance=-7.0), "guidance=-7"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
