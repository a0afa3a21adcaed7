"""DDPM's ancestral sampling: Bayes' posterior, three variances, and guided-diffusion's values."""

import itertools
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.ddim import Ddim, EulerAncestral
from tests.oracles import Mixture
from tests.sampling.solving import levels, walk

STORED = np.load(pathlib.Path(__file__).parents[2] / "goldens" / "dpm.npz")
PROCESSES = [VariancePreserving(Cosine()), VarianceExploding(), RectifiedFlow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape)


def a_step(sampler, process, fraction=None, t=0.7, t_next=0.4):
    """One step with an arbitrary prediction: (x_t, predicted image, drawn noise, x_next)."""
    x_t, x_0, z = images(3, 2, 2, 2, 1)
    alpha, sigma = process.signal(jnp.asarray(t))
    prediction = Prediction(jnp.asarray(x_0), (x_t - alpha * x_0) / sigma, fraction)
    times = jnp.asarray([t, t_next])
    return x_t, x_0, z, walk(sampler, lambda x, t: prediction, process, times, x_t, [z])[-1]


def moments(process, t=0.7, t_next=0.4):
    """alpha and variance of the step up from t_next to t, and precision of the posterior of x_next, by Bayes."""
    (alpha, sigma), (alpha_next, sigma_next) = (
        tuple(float(value) for value in process.signal(jnp.asarray(time))) for time in (t, t_next)
    )
    ratio = alpha / alpha_next
    variance = sigma**2 - ratio**2 * sigma_next**2
    return ratio, variance, 1 / sigma_next**2 + ratio**2 / variance, alpha_next, sigma_next


@each_process
@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_step_is_the_posterior_of_bayes(variance, process):
    """q(x_next | x_t, x_0) is the product of q(x_next | x_0) and q(x_t | x_next): precisions add."""
    ratio, forward, precision, alpha_next, sigma_next = moments(process)
    x_t, x_0, z, x_next = a_step(Ancestral(variance), process)
    mean = (alpha_next * x_0 / sigma_next**2 + ratio * x_t / forward) / precision
    std = precision**-0.5 if variance == "small" else forward**0.5
    np.testing.assert_allclose(x_next, mean + std * z, rtol=1e-7, atol=1e-9)


@each_process
def test_a_learned_variance_lies_between_the_two_in_the_logarithm(process):
    """Nichol & Dhariwal 2021, equation 15; value by value."""
    _, forward, precision, _, _ = moments(process)
    fraction = np.random.default_rng(4).uniform(-0.1, 1.1, size=(2, 2, 2, 1))
    _, _, z, x_next = a_step(Ancestral("learned"), process, jnp.asarray(fraction))
    _, _, _, small = a_step(Ancestral("small"), process)
    std = np.exp((fraction * np.log(forward) + (1 - fraction) * np.log(1 / precision)) / 2)
    np.testing.assert_allclose(x_next - small, (std - precision**-0.5) * z, rtol=1e-7, atol=1e-9)


@each_process
def test_ddim_with_eta_1_is_ddpm_and_euler_ancestral(process):
    *_, expected = a_step(Ddim(1.0), process)
    for sampler in (Ancestral(), EulerAncestral()):
        np.testing.assert_allclose(a_step(sampler, process)[-1], expected, rtol=1e-12, atol=1e-12)
    *_, expected = a_step(Ddim(0.4), process)
    np.testing.assert_array_equal(a_step(EulerAncestral(0.4), process)[-1], expected)


def test_the_scale_of_the_noise_multiplies_what_is_drawn():
    process = RectifiedFlow()
    *_, still = a_step(EulerAncestral(1.0, noise_scale=0.0), process)
    *_, once = a_step(EulerAncestral(1.0), process)
    *_, more = a_step(EulerAncestral(1.0, noise_scale=1.5), process)
    np.testing.assert_allclose(more - still, 1.5 * (once - still), rtol=1e-9)


@pytest.mark.parametrize("sampler", [Ancestral("small"), Ddim(1.0), Ddim(0.5), EulerAncestral()], ids=str)
def test_from_pure_noise_a_step_mixes_old_and_new_noise(sampler):
    """At alpha = 0 the image has no information on x_0: with eta = 1, the prediction is diffused with new noise."""
    flow = RectifiedFlow()
    x, x_0, z, x_next = a_step(sampler, flow, t=1.0)
    eta = getattr(sampler, "eta", 1.0)
    expected = 0.6 * x_0 + 0.4 * (np.sqrt(1 - eta**2) * x + eta * z)
    np.testing.assert_allclose(x_next, expected, rtol=1e-9)


def test_from_pure_noise_the_larger_variance_is_1():
    _, x_0, z, x_next = a_step(Ancestral("large"), RectifiedFlow(), t=1.0)
    np.testing.assert_allclose(x_next, 0.6 * x_0 + z, rtol=1e-9)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"variance='medium'.*Fix"):
        Ancestral("medium")
    with pytest.raises(UserError, match=r"variance='learned'.*expected a model with a learned variance.*Fix"):
        a_step(Ancestral("learned"), RectifiedFlow())
    with pytest.raises(UserError, match=r"eta=1\.5"):
        EulerAncestral(1.5)


@pytest.mark.parametrize("part", [Ancestral("learned"), EulerAncestral(0.5, 1.1)], ids=str)
def test_it_is_a_config_block(part):
    assert config.build(config.from_json(config.to_json(config.describe(part)))) == part


def table(schedule: str, steps) -> tuple:
    """The process and times of guided-diffusion's steps."""
    alpha_squared = STORED[f"gd/{schedule}/alphas_cumprod"][steps]
    return levels(np.sqrt(alpha_squared), np.sqrt(1 - alpha_squared))


def clipped(denoise, process):
    """The clipped prediction and the corresponding noise."""

    def call(x, t):
        x_0, _, fraction = denoise(x, t)
        x_0 = jnp.clip(x_0, -1, 1)
        alpha, sigma = process.signal(t)
        return Prediction(x_0, (x - alpha * x_0) / sigma, fraction)

    return call


@pytest.mark.spread(3)
@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("ddpm25_small", Ancestral("small")),
        ("ddpm25_large", Ancestral("large")),
        ("ddim25_eta0", Ddim()),
        ("ddim25_eta1", Ddim(1.0)),
    ],
)
def test_loops_of_guided_diffusion(name, sampler, schedule, clip):
    steps = (
        np.arange(0, 1000, 40) if name.startswith("ddim") else np.round(np.arange(25) * 999 / 24).astype(int)
    )
    process, times = table(schedule, steps[::-1])
    oracle = Mixture(*(jnp.asarray(STORED[f"gd/{key}"]) for key in ("weights", "means", "stds")))
    denoise = clipped(oracle.denoiser(process), process) if clip else oracle.denoiser(process)
    x = STORED["gd/x_T"].transpose(0, 2, 3, 1)
    found = walk(sampler, denoise, process, times, x, STORED["gd/noise"].transpose(0, 1, 3, 4, 2))
    found = np.stack([*found[1:], denoise(jnp.asarray(found[-1]), times[-1]).x_0]).transpose(0, 1, 4, 2, 3)
    np.testing.assert_allclose(found, STORED[f"gd/{schedule}/{name}/clip{clip}"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_steps_of_guided_diffusion_with_its_learned_variance(schedule, clip):
    first_with_noise = 1  # its step from 0 is the jump to the image
    for row, t in itertools.islice(enumerate(STORED["gd/t"]), first_with_noise, None):
        process, times = table(schedule, [t, t - 1])
        noise, v = np.split(
            STORED["gd/model_out"][row].transpose(1, 2, 0)[None].astype(np.float64), 2, axis=-1
        )
        alpha, sigma = process.signal(times[0])

        def denoise(x, t, noise=noise, v=v, alpha=alpha, sigma=sigma):
            return Prediction((x - sigma * noise) / alpha, jnp.asarray(noise), jnp.asarray((v + 1) / 2))

        x = STORED[f"gd/{schedule}/x_t"][row].transpose(1, 2, 0)[None]
        z = STORED["gd/noise2"][row].transpose(1, 2, 0)[None].astype(np.float64)
        model = clipped(denoise, process) if clip else denoise
        found = walk(Ancestral("learned"), model, process, times, x, [z])[-1][0].transpose(2, 0, 1)
        expected = STORED[f"gd/{schedule}/p_sample/clip{clip}"][row]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
