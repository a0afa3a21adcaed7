"""Variational bounds as losses: guided-diffusion's numbers, and closed forms for Gaussian data."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import logsumexp
from scipy.stats import norm

from jaxdiff import config as configs
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.config import spec
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.likelihood.variational import TanhDecoder, prior_bits
from jaxdiff.process import prediction, weighting
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.learned import LearnedVariancePreserving
from jaxdiff.process.prediction import LearnedVariance, Noise
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.table import CosineBetas, LinearBetas, Table
from jaxdiff.process.time_sampling import (
    Importance,
    LogNormalSigma,
    Uniform,
    UniformLogSnr,
    UniformSteps,
)
from jaxdiff.tasks.bounds import ContinuousVlb, Hybrid, SoftmaxDecoder, Vlb
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from tests.tasks import models

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "losses.npz")
STEPS = 1000
PROCESSES = {
    "linear": VariancePreserving(Table(LinearBetas())),
    "cosine": VariancePreserving(Table(CosineBetas())),
}
STD = models.STD
LEARNED = LearnedVariance()
TAIL = norm.isf(1.2e-7)  # where normally distributed times are cut off


def golden(name):
    """Stored images, channels last."""
    return jnp.asarray(np.moveaxis(GOLDENS[f"guided_diffusion/{name}"], 1, -1), jnp.float64)


def constant_task(process, objective, parameterization=LEARNED):
    """A network with a constant output for all images, on the steps of a discrete model."""
    channels = 6 if parameterization == LEARNED else 3
    network = models.Constant((4, 6, 6, channels))
    denoiser = Denoiser(network, Conditioner(models.Label()), process, parameterization)
    return DenoisingTask(denoiser, UniformSteps(STEPS), (6, 6, 3), objective)


def stored():
    """The parameters and the examples of guided-diffusion's losses."""
    t = GOLDENS["guided_diffusion/t"]
    examples = {
        "x_0": golden("x_start"),
        "noise": golden("noise"),
        "u": jnp.asarray((t + 0.5) / STEPS),
        "importance": jnp.ones(len(t)),
        "drop": {},
        "fields": {},
    }
    return {"network": {"output": golden("model_out")}}, examples


@pytest.mark.spread(1)
@pytest.mark.parametrize("schedule", PROCESSES)
def test_losses_of_guided_diffusion(schedule):
    """Its MSE, RESCALED_MSE, KL and RESCALED_KL, on which its models and ADM's were trained."""
    process, decoder = PROCESSES[schedule], TanhDecoder()
    params, examples = stored()
    prior = prior_bits(process, examples["x_0"])
    for name, objective, scale, offset in (
        ("MSE", Hybrid(weight=1 / STEPS, decoder=decoder), 1, 0),
        ("RESCALED_MSE", Hybrid(weight=0.001, decoder=decoder), 1, 0),
        ("RESCALED_KL", Vlb(decoder), 1, prior),
        ("KL", Vlb(decoder), STEPS, prior),
    ):
        losses, _ = models.losses_of(constant_task(process, objective), params, examples)
        expected = GOLDENS[f"guided_diffusion/{schedule}/{name}/loss"]
        np.testing.assert_allclose((losses - offset) / scale, expected, rtol=1e-9)
    losses, metrics = models.losses_of(constant_task(process, WeightedError()), params, examples)
    np.testing.assert_allclose(losses, GOLDENS[f"guided_diffusion/{schedule}/MSE/mse"], rtol=1e-9)
    np.testing.assert_allclose(metrics["squared_error"], np.mean(losses), rtol=1e-12)


@pytest.mark.slow
def test_hybrid_trains_the_variance_by_the_bound_only():
    process = PROCESSES["cosine"]
    params, examples = stored()

    def gradient(objective):
        task = constant_task(process, objective)
        grads = jax.grad(lambda params: jnp.sum(models.losses_of(task, params, examples)[0]))(params)
        return jnp.split(grads["network"]["output"], 2, axis=-1)

    (mean, variance), (simple, nothing), (_, of_bound) = map(gradient, (Hybrid(), WeightedError(), Vlb()))
    np.testing.assert_allclose(mean, simple, rtol=1e-12)
    assert not np.any(nothing)
    np.testing.assert_allclose(variance, 0.001 * of_bound, rtol=1e-12)
    assert np.all(np.any(of_bound != 0, axis=(1, 2, 3)))


def test_the_terms_of_all_steps_have_the_bound_as_their_mean():
    """Each term is the divergence of two normal distributions of equal variance, at the optimal denoiser."""
    steps, process = 5, VariancePreserving(Cosine(-6.0, 6.0))
    task = models.affine_task(process, Vlb())
    examples, mean = models.quadrature((np.arange(steps) + 0.5) / steps)
    params = {"network": dict(zip("ab", models.best(process, models.OF_DATA, times(steps)), strict=True))}
    losses = mean(models.losses_of(task, params, examples)[0])
    snr = np.exp(process.log_snr(times(steps)))
    expected = (snr[:-1] - snr[1:]) / 2 * models.mmse(process, times(steps)[1:]) / np.log(2)
    prior = snr[-1] * (STD**2 + models.MEAN**2) / 2 / np.log(2)
    np.testing.assert_allclose(losses[1:], steps * expected + prior, rtol=1e-9)


def times(steps):
    return jnp.arange(1, steps + 1) / steps


class Silent(SoftmaxDecoder):
    """A decoder that needs no bits."""

    def __call__(self, x_0, mean, std):
        return 0 * mean


def continuous_task(process, time_sampler, **objective):
    """The optimal denoiser of N(0, STD^2) pixels at every time: EDM's preconditioning of zeros."""
    denoiser = Denoiser(models.Zero(), Conditioner(models.Label()), process, prediction.Edm(STD))
    return DenoisingTask(denoiser, time_sampler, (1, 1, 1), ContinuousVlb(**objective))


def integrated(task, params, nodes=200):
    """The exact mean over pixel, noise and u: Gauss-Legendre nodes, in the quantile for normal times."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    u, weights = (points + 1) / 2, weights / 2
    if isinstance(task.time_sampler, LogNormalSigma):
        u, weights = norm.cdf(TAIL * points), norm.pdf(TAIL * points) * 2 * TAIL * weights
    examples, mean = models.quadrature(u)
    examples["x_0"] = examples["x_0"] - models.MEAN
    return mean(models.losses_of(task, params, examples)[0]) @ jnp.asarray(weights)


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("process", "time_sampler", "first", "last"),
    [
        (VariancePreserving(Cosine(-5.0, 9.0)), Uniform(), 9.0, -5.0),
        (VarianceExploding(math.exp(-4.5), math.exp(2.5)), Uniform(), 9.0, -5.0),
        (RectifiedFlow(), UniformLogSnr(-5.0, 9.0), 9.0, -5.0),
        (VarianceExploding(), LogNormalSigma(-1.0, 0.7), 2 + 1.4 * TAIL, 2 - 1.4 * TAIL),
    ],
    ids=str,
)
def test_diffusion_term_is_the_information_for_any_time_distribution(process, time_sampler, first, last):
    """I-MMSE: ``-1/2 int mmse dSNR``, for Gaussian data, independent of schedule and time distribution."""
    task = continuous_task(process, time_sampler, decoder=Silent())
    total = integrated(task, {})
    snr_0, snr_1 = np.exp(first), np.exp(last)
    prior = snr_1 * STD**2 / 2
    diffusion = np.log((1 + STD**2 * snr_0) / (1 + STD**2 * snr_1)) / 2
    np.testing.assert_allclose(total, (prior + diffusion) / np.log(2), rtol=1e-6)


def test_terms_of_the_continuous_bound_are_logged_and_add_up():
    task = continuous_task(VariancePreserving(Cosine(-5.0, 9.0)), Uniform())
    examples, _ = models.quadrature(np.array([0.2, 0.7]))
    losses, metrics = models.losses_of(task, {}, examples)
    assert set(metrics) == {"diffusion_bits", "prior_bits", "reconstruction_bits"}
    np.testing.assert_allclose(sum(metrics.values()), np.mean(losses), rtol=1e-12)
    x_0, std = np.asarray(examples["x_0"]), np.exp(-4.5)
    np.testing.assert_allclose(metrics["prior_bits"], np.exp(-5) * np.mean(x_0**2) / 2 / np.log(2), rtol=1e-9)
    z = x_0 + std * np.asarray(examples["noise"])
    levels = np.arange(256) / 127.5 - 1
    normaliser = logsumexp(-((levels - z) ** 2) / (2 * std**2), axis=-1, keepdims=True)
    nats = (x_0 - z) ** 2 / (2 * std**2) + normaliser
    np.testing.assert_allclose(metrics["reconstruction_bits"], np.mean(nats) / np.log(2), rtol=1e-9)


@pytest.mark.spread(2)
@pytest.mark.parametrize("std", [1e-3, 0.05, 30.0])
def test_probabilities_of_the_levels_sum_to_one(std):
    levels = jnp.asarray(np.arange(256) / 127.5 - 1).reshape(-1, 1, 1, 1)
    for mean in (-1.2, 0.1234, levels[7]):
        log_p = SoftmaxDecoder()(levels, jnp.broadcast_to(mean, levels.shape), jnp.full(levels.shape, std))
        np.testing.assert_allclose(np.sum(np.exp(log_p)), 1, rtol=1e-9)
    assert np.argmax(log_p) == 7
    ratio = (np.square(levels[9] - levels[7]) - np.square(levels[8] - levels[7])) / (2 * std**2)
    np.testing.assert_allclose(log_p[8] - log_p[9], ratio, rtol=1e-6)


def learned_config(**task):
    """A variational diffusion model as a config."""
    return spec(
        DenoisingTask,
        denoiser=spec(
            Denoiser,
            network=spec(models.Zero),
            conditioner=spec(Conditioner, noise=spec(models.Label)),
            process=spec(LearnedVariancePreserving, log_snr_min=-4.0, log_snr_max=7.0, width=8),
            parameterization=spec(prediction.Edm, sigma_data=STD),
        ),
        image_shape=(1, 1, 1),
        **{"time_sampler": spec(Uniform), "objective": spec(ContinuousVlb), **task},
    )


@pytest.mark.slow
def test_a_learned_process_is_trained_through_its_times():
    """The mean bound depends on the ends of the schedule only, as in the closed form."""
    task = configs.build(learned_config())
    zero_initialised = configs.build(learned_config(objective=spec(ContinuousVlb, decoder=spec(Silent))))
    params = jax.tree.map(jnp.float64, nn.meta.unbox(jax.jit(task.init)(jax.random.key(0))))

    @jax.jit
    def gradients(params):
        """Of the whole mean without the decoder's term, and of the loss at one time, without and with it."""
        examples, mean = models.quadrature(np.array([0.3]))
        examples["x_0"] = examples["x_0"] / 10  # well within the levels
        whole = jax.grad(lambda params: integrated(zero_initialised, params, 60))(params)
        one = (
            jax.grad(lambda params, of=of: mean(models.losses_of(of, params, examples)[0])[0])(params)
            for of in (zero_initialised, task)
        )
        return tuple(tree["process"] for tree in (whole, *one))

    whole, at_one_time, with_decoder = gradients(params)
    for name in ("slope", "steepness", "offset", "height"):
        np.testing.assert_allclose(whole[name], 0, atol=1e-6)
        # One time is not the mean: there the shape matters, by which the variance of the loss can be lowered.
        assert np.all(np.abs(at_one_time[name]) > 1e-6)
    snr_0, snr_1 = np.exp(7.0), np.exp(-4.0)
    of_first = -(STD**2) * snr_0 / (1 + STD**2 * snr_0) / 2  # d / d gamma_0, gamma = -log-SNR
    of_last = STD**2 * snr_1 / (1 + STD**2 * snr_1) / 2 - STD**2 * snr_1 / 2  # d / d gamma_1
    np.testing.assert_allclose(whole["gamma_0"], (of_first + of_last) / np.log(2), rtol=1e-5)
    d_range = of_last / np.log(2) * (1 - np.exp(-11.0))  # the range is a softplus
    np.testing.assert_allclose(whole["range"], d_range, rtol=1e-4)
    # More noise at the first time costs the decoder bits: half a nat for each unit, where the levels are many.
    np.testing.assert_allclose(with_decoder["gamma_0"] - at_one_time["gamma_0"], 0.5 / np.log(2), rtol=0.05)


@pytest.mark.parametrize(
    "objective",
    [Vlb(), Vlb(TanhDecoder()), Hybrid(WeightedError(weighting.MinSnr()), 0.01), ContinuousVlb()],
    ids=str,
)
def test_objectives_survive_json(objective):
    block = configs.from_json(configs.to_json(configs.describe(objective)))
    assert configs.build(block, packages=("jaxdiff",)) == objective


def test_impossible_settings_are_refused():
    process = VariancePreserving(Cosine())
    for objective in (Vlb(), Hybrid()):
        with pytest.raises(UserError, match=r"time_sampler=Uniform.*UniformSteps"):
            models.affine_task(process, objective, time_sampler=Uniform())
    with pytest.raises(UserError, match=r"time_sampler=UniformSteps.*Uniform"):
        models.affine_task(process, ContinuousVlb())
    with pytest.raises(UserError, match="weight=0"):
        Hybrid(weight=0.0)
    params, examples = stored()
    task = constant_task(process, Hybrid(), Noise())
    with pytest.raises(UserError, match=r"parameterization=Noise.*LearnedVariance"):
        models.losses_of(task, {"network": {"output": params["network"]["output"][..., :3]}}, examples)
    assert Importance(UniformSteps(7)).steps == 7
