import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Linear
from jaxdiff.sampling.grids import continuous as grids
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.noise import noise_like
from jaxdiff.sampling.recipe import PRIOR, Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.sampling.samplers.heun import Euler, Heun
from tests.oracles import Counting, Gaussian

SAMPLERS = [Euler(), Ddim(), Ddim(1.0), Heun(), Heun(churn=0.2), DpmSolver2M()]
SHAPE = (2, 2, 1)


def conditional(process, std=0.5):
    """Images around a mean that is the condition; 0 where the condition is dropped."""

    def denoise(x, t, fields, drop):
        mean = jnp.where(drop["mean"], 0.0, fields["mean"])[:, None, None, None]
        return Gaussian(mean, jnp.asarray(std)).denoiser(process)(x, t)

    return denoise


def a_recipe(sampler, steps=5, scale=1.0):
    return Recipe(sampler, grids.Uniform(), ClassifierFree(scale), steps)


@functools.partial(jax.jit, static_argnums=(0, 1))
def make(recipe, process, mean, keys):
    return recipe(conditional(process), process, {"mean": mean}, SHAPE, keys)


def three_images():
    return jnp.array([-1.0, 0.5, 2.0]), jax.random.split(jax.random.key(1), 3)


def prior(keys):
    first = jax.vmap(lambda key: jax.random.fold_in(key, PRIOR))(keys)
    return np.asarray(noise_like(first, jnp.zeros((len(keys), *SHAPE))))


@pytest.mark.spread(2)
@pytest.mark.parametrize("sampler", [Ddim(), Heun(), DpmSolver2M()], ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_calls_match_the_promised_number(sampler, scale):
    recipe, counting = a_recipe(sampler, 3, scale), Counting(conditional(RectifiedFlow()))
    mean, keys = three_images()
    with jax.disable_jit():
        recipe(counting, RectifiedFlow(), {"mean": mean}, SHAPE, keys)
    assert counting.calls == recipe.calls(RectifiedFlow()) == sampler.calls(2) + 1


@pytest.mark.spread(2)
@pytest.mark.parametrize("sampler", [Ddim(1.0), Heun(churn=0.2), DpmSolver2M()], ids=str)
def test_an_image_does_not_depend_on_its_batch(sampler, float32):
    mean, keys = three_images()
    recipe = a_recipe(sampler, 4, scale=2.0)
    together = make(recipe, RectifiedFlow(), mean, keys)
    alone = make(recipe, RectifiedFlow(), mean[1:2], keys[1:2])
    assert together.dtype == jnp.float32
    assert np.all(np.isfinite(together))
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5)
    np.testing.assert_array_equal(prior(keys)[1:2], prior(keys[1:2]))


@pytest.mark.parametrize(("sampler", "tolerance"), [(Ddim(), 0.01), (Heun(), 1e-4), (DpmSolver2M(), 1e-3)])
def test_from_pure_noise_every_pixel_keeps_its_quantile(sampler, tolerance):
    """A flow starts at alpha = 0, where no solver may divide by it."""
    mean, keys = three_images()
    found = make(a_recipe(sampler, 200), RectifiedFlow(), mean, keys)
    np.testing.assert_allclose(
        found, np.asarray(mean)[:, None, None, None] + 0.5 * prior(keys), atol=tolerance
    )


def test_ancestral_sampling_of_a_gaussian_has_the_closed_form_variance():
    process, steps, std = VariancePreserving(Linear()), 20, 0.5
    keys = jax.random.split(jax.random.key(2), 1000)
    found = make(a_recipe(Ddim(1.0), steps), process, jnp.zeros(1000), keys)
    alpha, sigma = map(np.asarray, process.signal(grids.Uniform()(process, steps)))
    variance = sigma[0] ** 2
    for i in range(steps):
        marginal = (alpha[i] * std) ** 2 + sigma[i] ** 2
        x_0, noise = alpha[i] * std**2 / marginal, sigma[i] / marginal  # the prediction, in units of x_t
        if i + 1 == steps:
            variance *= x_0**2
        else:
            fresh = 1 - (alpha[i] * sigma[i + 1] / (sigma[i] * alpha[i + 1])) ** 2
            kept = alpha[i + 1] * x_0 + sigma[i + 1] * np.sqrt(1 - fresh) * noise
            variance = kept**2 * variance + sigma[i + 1] ** 2 * fresh
    assert abs(np.var(found) / variance - 1) < 4 * np.sqrt(2 / found.size)
    assert abs(np.mean(found)) < 4 * np.sqrt(variance / found.size)


@pytest.mark.parametrize("process", [VarianceExploding(), VariancePreserving(Linear())], ids=str)
def test_the_first_images_have_the_noise_of_the_first_time(process):
    """One step of a model that calls its input clean returns where sampling starts."""
    grid, (_, keys) = grids.Karras(), three_images()
    recipe = Recipe(Ddim(), grid, ClassifierFree(), 1)
    found = recipe(lambda x, t, fields, drop: Prediction(x, x), process, {}, SHAPE, keys)
    sigma = np.asarray(process.signal(grid(process, 1)).sigma)
    np.testing.assert_allclose(found, sigma * prior(keys), rtol=1e-12)


def test_noise_is_float32_with_one_key_per_image():
    keys = jax.random.split(jax.random.key(0), 3)
    noise = noise_like(keys, jnp.zeros((3, *SHAPE), jnp.bfloat16))
    assert noise.dtype == jnp.float32
    np.testing.assert_array_equal(noise[2], jax.random.normal(keys[2], SHAPE, jnp.float32))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_configs_build_the_same_recipe(sampler):
    recipe = Recipe(sampler, grids.Karras(), ClassifierFree(2.0), 7)
    block = describe(recipe)
    assert build(block) == build(from_json(to_json(block))) == recipe


def test_no_steps_are_refused():
    with pytest.raises(UserError, match="steps=0"):
        a_recipe(Ddim(), 0)
