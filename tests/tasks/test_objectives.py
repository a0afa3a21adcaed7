"""Losses have the minimum, minimal value and gradient of the theory, without sampling error."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxdiff import config as configs
from jaxdiff.errors import UserError
from jaxdiff.models.uncertainty import Uncertainty
from jaxdiff.process import prediction, weighting
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.labels import LogSigma, Time
from jaxdiff.process.schedule import Cosine, Linear
from jaxdiff.process.time_sampling import LogNormalSigma, LogUniformSigma, Uniform
from jaxdiff.tasks.distances import PseudoHuber, Squared
from jaxdiff.tasks.objectives import LossInputs, UncertaintyWeighted, WeightedError
from jaxdiff.training.ema import Ema
from jaxdiff.training.step import Frozen, TrainState, make_train_step
from tests.tasks import models
from tests.tasks.models import MEAN, STD, STEPS

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "losses.npz")
VP = VariancePreserving(Cosine(-6.0, 6.0))
PROCESSES = [VP, VarianceExploding(0.01, 5.0), RectifiedFlow()]
LABEL = Time(1.0)
LEARNS_V = prediction.V(LABEL)
U = (np.arange(STEPS) + 0.5) / STEPS
WEIGHTINGS = [
    weighting.Flat(),
    weighting.Flat(prediction.V()),
    weighting.Flat(prediction.Edm()),
    weighting.Snr(),
    weighting.TruncatedSnr(),
    weighting.MinSnr(2.0),
    weighting.SoftMinSnr(),
    weighting.Debiased(),
    weighting.P2(),
    weighting.Edm(),
    weighting.Sigmoid(1.0),
]


def times():
    return jnp.asarray(np.arange(1, STEPS + 1) / STEPS)


def by_level(task, params):
    """The exact mean loss at each of the STEPS times."""
    examples, mean = models.quadrature(U)
    losses, _ = models.losses_of(task, {"network": params}, examples)
    return mean(losses)


@pytest.mark.spread(1)
@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_optimal_denoiser_has_the_smallest_possible_loss(process):
    """The closed-form posterior variance at each level; Edm's weight makes it 1 where sigma_data is the data's."""
    t = times()[:-1]  # at t = 1 a flow is pure noise
    for parameterization, weight, expected in (
        (prediction.Data(LABEL), weighting.Flat(prediction.Data()), models.mmse(process, t)),
        (prediction.V(LABEL), weighting.Edm(STD), np.ones(STEPS - 1)),
        (prediction.Velocity(LABEL), weighting.Snr(), models.mmse(process, t) * np.exp(process.log_snr(t))),
    ):
        a, b = models.best(process, parameterization, times())
        task = models.affine_task(process, WeightedError(weight), parameterization)
        np.testing.assert_allclose(by_level(task, {"a": a, "b": b})[:-1], expected, rtol=1e-9)


@pytest.mark.spread(3)
@pytest.mark.parametrize("weight", WEIGHTINGS, ids=str)
def test_every_weighting_has_the_same_optimum(weight):
    """The gradient at the posterior mean is zero, and at no other pair of numbers, at every noise level."""
    parameterization = prediction.V(LABEL)
    task = models.affine_task(VP, WeightedError(weight), parameterization)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(by_level(task, params))))
    a, b = models.best(VP, parameterization, times())
    at_best, beside = gradient({"a": a, "b": b}), gradient({"a": a + 0.1, "b": b - 0.1})
    for name in "ab":
        assert np.all(np.abs(at_best[name]) < 1e-10 * np.abs(beside[name]))


def test_loss_is_the_same_for_every_parameterization():
    """The same denoiser behind another target: a weighting names its space."""
    losses = []
    for parameterization in (prediction.Data(LABEL), prediction.Noise(LABEL), prediction.Velocity(LABEL)):
        a, b = models.best(VP, parameterization, times())
        # the same error of the image, 0.1 x + 0.2, in the units of each target
        ratio = prediction.error_ratio(prediction.Data(), parameterization, VP, times())
        task = models.affine_task(VP, WeightedError(weighting.P2()), parameterization)
        losses.append(by_level(task, {"a": a + 0.1 / ratio, "b": b + 0.2 / ratio}))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-9)


def train(task, params, steps, batch_size):
    """The engine's own step on N(MEAN, STD^2) pixels."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))
    step = make_train_step(task, optimizer, Ema(), seed=0)

    def go(state, index):
        pixels = jax.random.normal(jax.random.fold_in(jax.random.key(1), index), (batch_size, 1, 1, 1))
        return step(state, {"image": MEAN + STD * pixels}, Frozen())

    state = TrainState(jnp.int32(0), params, params, optimizer.init(params), task.init_task_state())
    return jax.jit(lambda state: jax.lax.scan(go, state, jnp.arange(steps)))(state)[0]


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("uncertain", [False, True])
def test_linear_model_reaches_optimum(uncertain, float32):
    """A linear denoiser converges to the closed-form a(sigma), b(sigma), and the log-variance to that of its error."""
    objective = WeightedError(weighting.Flat(prediction.Data()))
    if uncertain:
        task = models.affine_task(VP, UncertaintyWeighted(objective), uncertainty=Uncertainty(32))
    else:
        task = models.affine_task(VP, objective)
    params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
    params = train(task, params, 600, 1000).params
    a, b = models.best(VP, prediction.Data(), times())
    np.testing.assert_allclose(params["network"]["a"], a, atol=0.02)
    np.testing.assert_allclose(params["network"]["b"], b, atol=0.02)
    if uncertain:
        u = task.denoiser.apply({"params": params}, times(), method="log_variance")
        np.testing.assert_allclose(u, np.log(models.mmse(VP, times())), atol=0.1)


def test_uncertainty_weighted_is_equation_21():
    objective, random = UncertaintyWeighted(WeightedError(weighting.Edm())), np.random.default_rng(0)
    x_0, noise, output = (jnp.asarray(random.standard_normal((STEPS, 2, 2, 1))) for _ in range(3))
    u = jnp.asarray(random.standard_normal(STEPS))
    time_sampler, u_of_times = Uniform(), times() - 0.05
    seen = LossInputs(VP, LEARNS_V, time_sampler, u_of_times, u_of_times, x_0, noise, x_0, output, u)
    errors, _ = objective.error(seen)
    losses, metrics = objective(seen)
    np.testing.assert_allclose(losses, errors * np.exp(-u) + u, rtol=1e-12)
    np.testing.assert_allclose(metrics["weighted_error"], np.mean(errors), rtol=1e-12)

    @jax.jit
    @jax.value_and_grad
    def total(log_variance):
        return jnp.sum(objective(dataclasses.replace(seen, log_variance=log_variance))[0])

    best = jnp.log(errors)
    np.testing.assert_allclose(total(best)[1], 0, atol=1e-12)
    assert total(best)[0] < min(total(best + 0.1)[0], total(best - 0.1)[0])


def test_uncertainty_starts_with_the_plain_loss_and_learns_from_there():
    plain = models.affine_task(VP, WeightedError())
    task = models.affine_task(VP, UncertaintyWeighted(), uncertainty=Uncertainty(16))
    params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
    examples, _ = models.quadrature(U)
    np.testing.assert_array_equal(
        models.losses_of(task, params, examples)[0], models.losses_of(plain, params, examples)[0]
    )
    grads = jax.grad(lambda params: jnp.sum(models.losses_of(task, params, examples)[0]))(params)
    assert np.all(grads["uncertainty"]["linear"]["kernel"] != 0)
    assert not np.any(grads["uncertainty"]["frequencies"])
    assert not np.any(grads["uncertainty"]["phases"])


def test_uncertainty_is_edm2s():
    """Their linear layer divides its weights by their norm in the forward pass; ours has them as they act."""
    weight = GOLDENS["edm2/weight"].astype(np.float64)
    weight /= np.linalg.norm(weight) + 1e-4 * np.sqrt(weight.size)
    params = {
        "frequencies": jnp.asarray(GOLDENS["edm2/freqs"] / (2 * np.pi)),
        "phases": jnp.asarray(GOLDENS["edm2/phases"] / (2 * np.pi)),
        "linear": {"kernel": jnp.asarray(weight.T), "bias": jnp.zeros(1)},
    }
    process = VarianceExploding()
    sigma = jnp.asarray(GOLDENS["edm2/sigma"], jnp.float64)
    label = LogSigma()(process, process.time(-2 * jnp.log(sigma)))
    found = Uncertainty(weight.size).apply({"params": params}, label)
    np.testing.assert_allclose(found, GOLDENS["edm2/logvar"], atol=2e-6)


def test_noise_levels_of_edms_losses():
    """EDM's rows of table 1: what VP, VE and EDM make of the same random numbers (float32 there)."""
    normal, uniform = (jnp.asarray(GOLDENS[f"edm/rnd_{kind}"], jnp.float64) for kind in ("normal", "uniform"))
    vp, ve = VariancePreserving(Linear(0.1, 20.0)), VarianceExploding()
    for name, time_sampler, process, u in (
        ("EDM", LogNormalSigma(-1.2, 1.2), ve, jax.scipy.special.ndtr(normal)),
        ("EDM_opts", LogNormalSigma(-0.6, 1.4), ve, jax.scipy.special.ndtr(normal)),
        ("VP", Uniform(1e-5, 1.0), vp, 1 - uniform),  # there the first number means the most noise
        ("VE", LogUniformSigma(0.02, 100.0), ve, uniform),
    ):
        alpha, sigma = process.signal(time_sampler.quantile(u, process))
        np.testing.assert_allclose(sigma / alpha, GOLDENS[f"edm/{name}/sigma"], rtol=5e-6)
        s = sigma / alpha
        if name in ("VP", "VE"):
            np.testing.assert_allclose(
                weighting.Snr()(process.log_snr(time_sampler.quantile(u, process))), 1 / s**2
            )


def test_pseudo_huber_is_a_square_near_zero_and_a_norm_far_away():
    random = np.random.default_rng(0)
    error = jnp.asarray(random.standard_normal((3, 4, 5, 2)))
    norm = np.sqrt(np.sum(np.square(error), axis=(1, 2, 3)))
    c = 0.00054 * np.sqrt(40)
    np.testing.assert_allclose(PseudoHuber()(error), np.sqrt(norm**2 + c**2) - c, rtol=1e-12)
    np.testing.assert_allclose(PseudoHuber(0.5)(1e6 * error), 1e6 * norm - 0.5, rtol=1e-9)
    np.testing.assert_allclose(PseudoHuber(0.5)(1e-6 * error), 1e-12 * norm**2 / (2 * 0.5), rtol=1e-9)
    assert np.all(jax.grad(lambda e: jnp.sum(PseudoHuber()(e)))(0 * error) == 0)
    np.testing.assert_allclose(Squared()(error), norm**2 / 40, rtol=1e-12)


def test_distance_is_computed_in_the_weightings_space():
    parameterization = prediction.Noise(LABEL)
    objective = WeightedError(weighting.MinSnr(2.0), PseudoHuber(0.3))
    task = models.affine_task(VP, objective, parameterization)
    params = {"network": {"a": 0.2 + 0 * times(), "b": -0.1 + 0 * times()}}
    examples, _ = models.quadrature(U)
    t = jnp.repeat(times(), 9)
    alpha, sigma = VP.signal(t)
    x_0, noise = (examples[name].ravel() for name in ("x_0", "noise"))
    error = sigma / alpha * (0.2 * (alpha * x_0 + sigma * noise) - 0.1 - noise)
    expected = np.minimum(np.exp(VP.log_snr(t)), 2) * (np.sqrt(error**2 + 0.09) - 0.3)
    losses, metrics = models.losses_of(task, params, examples)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    np.testing.assert_allclose(metrics["squared_error"], np.mean(error**2), rtol=1e-9)


@pytest.mark.parametrize(
    "objective",
    [
        WeightedError(),
        WeightedError(weighting.Flat(prediction.V())),
        UncertaintyWeighted(WeightedError(weighting.Edm())),
        WeightedError(distance=PseudoHuber()),
        WeightedError(distance=PseudoHuber(0.1)),
    ],
    ids=str,
)
def test_objectives_survive_json(objective):
    block = configs.from_json(configs.to_json(configs.describe(objective)))
    assert configs.build(block, packages=("jaxdiff",)) == objective


def test_impossible_settings_are_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"denoiser\.uncertainty=None: .* Fix: "):
        models.affine_task(VP, UncertaintyWeighted())
    with pytest.raises(UserError, match="c=0"):
        PseudoHuber(0.0)
    with pytest.raises(UserError, match="width=0"):
        Uncertainty(0)


def test_goldens_state_their_origin():
    assert set(json.loads(str(GOLDENS["meta"]))) == {"guided_diffusion", "edm", "edm2"}
