import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.process import transition
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.guidance.classifier import ClassifierGuidance
from jaxdiff.sampling.modifiers.thresholding import StaticThreshold
from jaxdiff.sampling.protocols import stateless
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.ddim import Ddim
from tests.oracles import Gaussian, predict_from_data
from tests.sampling.solving import Draws, levels

GOLDENS = np.load(pathlib.Path(__file__).parents[2] / "goldens" / "classifier_guidance.npz")
KEYS = jax.random.split(jax.random.key(0), 3)
MEAN, STD = 0.7, 0.4


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """``log p(y | x_t)`` for a class y with images N(sign MEAN, STD^2), among all images N(0, 1)."""

    process: object = RectifiedFlow()

    def __call__(self, x, t, conditions):
        alpha, sigma = self.process.signal(t)
        sign = conditions["sign"][:, None, None, None]

        def log_density(mean, variance):
            return -((x - mean) ** 2) / (2 * variance) - jnp.log(variance) / 2

        given = log_density(alpha * sign * MEAN, alpha**2 * STD**2 + sigma**2)
        return jnp.sum(given - log_density(0.0, alpha**2 + sigma**2), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Constant:
    """A density with the gradient 1 everywhere."""

    def __call__(self, x, t, conditions):
        return jnp.sum(x, axis=(1, 2, 3))


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    "process", [RectifiedFlow(), VarianceExploding(), VariancePreserving(Cosine())], ids=str
)
def test_with_the_true_density_it_is_the_conditional_denoiser(process):
    x, t = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1))), jnp.asarray(0.6)
    signs = {"sign": jnp.asarray([-1.0, 1.0, 0.5])}
    unconditional = Gaussian(jnp.asarray(0.0), jnp.asarray(1.0)).denoiser(process)
    mean = MEAN * signs["sign"][:, None, None, None]
    expected = Gaussian(mean, jnp.asarray(STD)).denoiser(process)(x, t)
    found = ClassifierGuidance(Likelihood(process))(stateless(unconditional), process, signs, KEYS)(x, t)
    np.testing.assert_allclose(found.x_0, expected.x_0, rtol=1e-9)
    np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-9)


def test_each_image_has_its_scale_and_keeps_its_noisy_image():
    x, process, t = jnp.ones((3, 2, 2, 1)), RectifiedFlow(), jnp.asarray(0.6)

    def denoise(x, t):
        return predict_from_data(process, x, t, 0.5 * x)._replace(variance_fraction=jnp.ones_like(x))

    found = ClassifierGuidance(Constant(), 3.0)(stateless(denoise), process, {}, KEYS)(x, t)
    np.testing.assert_allclose(found.noise, denoise(x, t).noise - 3 * 0.6, rtol=1e-9)
    np.testing.assert_allclose(0.4 * found.x_0 + 0.6 * found.noise, x, rtol=1e-9)
    np.testing.assert_array_equal(found.variance_fraction, 1.0)


def test_at_pure_noise_the_classifier_has_no_effect():
    x = jnp.ones((3, 2, 2, 1))
    guided = ClassifierGuidance(Constant(), 3.0)(
        stateless(lambda x, t: Prediction(0 * x, x)), RectifiedFlow(), {}, KEYS
    )
    found = guided(x, jnp.asarray(1.0))
    np.testing.assert_array_equal(found.x_0, 0.0)
    np.testing.assert_array_equal(found.noise, x)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A density with a stored gradient."""

    gradient: np.ndarray

    def __call__(self, x, t, conditions):
        return jnp.sum(x * self.gradient, axis=(1, 2, 3))


def step_of(sampler, table, row, guided):
    """One step with guided-diffusion's network output, clipping, gradient and noise; ours and theirs."""
    i = int(GOLDENS["t"][row])
    bars = GOLDENS[f"{table}/alphas_cumprod"]
    alpha_bars = np.array([bars[i], bars[i - 1]])
    process, (t, t_next) = levels(np.sqrt(alpha_bars), np.sqrt(1 - alpha_bars))
    channels_last = {
        name: np.moveaxis(GOLDENS[name][row : row + 1].astype(np.float64), 1, -1)
        for name in ("model_out", "cond_grad", "noise2", f"{table}/x_t")
    }
    x, output = jnp.asarray(channels_last[f"{table}/x_t"]), jnp.asarray(channels_last["model_out"])

    def denoise(x, t):
        alpha, sigma = process.signal(t)
        noise, v = output[..., :3], output[..., 3:]
        return Prediction((x - sigma * noise) / alpha, noise, (v + 1) / 2)

    denoise = StaticThreshold()(stateless(denoise), process, {}, KEYS[:1])
    if guided:
        density = Stored(jnp.asarray(channels_last["cond_grad"]))
        denoise = ClassifierGuidance(density)(denoise, process, {}, KEYS[:1])
    with Draws([jnp.asarray(channels_last["noise2"])]):
        found = sampler.step(denoise.call, process, sampler.init(x), t, t_next, KEYS[:1]).x
    beta = 1 - alpha_bars[0] / alpha_bars[1]
    fraction = (channels_last["model_out"][..., 3:] + 1) / 2
    variance = np.exp(transition.reverse_log_variance(process, t_next, t, jnp.asarray(fraction)))
    return np.asarray(found), channels_last["cond_grad"], beta, variance


def theirs(name, row):
    return np.moveaxis(GOLDENS[name][row : row + 1], 1, -1)


@pytest.mark.parametrize("table", ["linear", "cosine"])
def test_a_ddim_step_is_algorithm_2_of_guided_diffusion(table):
    for row in (1, 2, 3):
        found, *_ = step_of(Ddim(), table, row, guided=True)
        np.testing.assert_allclose(found, theirs(f"{table}/ddim_sample_cond_fn", row), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("table", ["linear", "cosine"])
def test_a_small_ancestral_step_is_algorithm_1_of_guided_diffusion(table):
    """Ours moves the mean by ``beta / sqrt(1 - beta)`` times the gradient (Tweedie), theirs by its variance."""
    for row in (1, 2):
        plain, gradient, beta, variance = step_of(Ancestral("learned"), table, row, guided=False)
        guided, *_ = step_of(Ancestral("learned"), table, row, guided=True)
        np.testing.assert_allclose(guided - plain, beta / np.sqrt(1 - beta) * gradient, rtol=1e-6, atol=1e-12)
        shifted = theirs(f"{table}/p_sample_cond_fn", row)
        np.testing.assert_allclose(plain + variance * gradient, shifted, rtol=1e-7, atol=1e-7)


def test_configs_build_the_same_modifier():
    modifier = ClassifierGuidance(Constant(), 2.0)
    assert build(from_json(to_json(describe(modifier)))) == modifier
