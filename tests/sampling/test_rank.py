"""The shape of an example does not matter: flat data give the same values as images."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids.continuous import LogSnrUniform
from jaxdiff.sampling.grids.restart import RePaint
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.cads import Cads
from jaxdiff.sampling.guidance.classifier import ClassifierGuidance
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.guidance.rules import CfgPlusPlus, Projected, Rescale
from jaxdiff.sampling.inversion import invert
from jaxdiff.sampling.modifiers.data_consistency import DataConsistency
from jaxdiff.sampling.modifiers.inpainting import Replacement
from jaxdiff.sampling.modifiers.thresholding import DynamicThreshold, StaticThreshold
from jaxdiff.sampling.protocols import Encoded, KnownData, stateless
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.adaptive import Rk45
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.heun import Heun
from tests.sampling.test_loop import SAMPLERS
from tests.selection import some

PROCESS, GRID = VariancePreserving(Cosine()), LogSnrUniform(-5.0, 5.0)
SHAPES = [(12,), (2, 2, 3), (2, 3, 1, 2)]
each_shape = pytest.mark.parametrize(
    "shape", [SHAPES[0], pytest.param(SHAPES[2], marks=pytest.mark.slow)], ids=str
)
KEYS = jax.random.split(jax.random.key(0), 3)
MEAN = np.random.default_rng(0).normal(size=(3, 12))
CONDITIONS = {"c": Encoded(jnp.asarray(MEAN), jnp.zeros((3, 12)), jnp.asarray(MEAN), jnp.zeros(3, bool))}


def model(x, t, conditions, drop):
    """The exact denoiser of N(mean, 1/4), whose mean is the condition. Dropped: N(0, 1)."""
    mean, flat = conditions["c"], x.reshape(x.shape[0], -1)
    mean = jnp.where(drop["c"][:, None], mean.uncond, mean.cond)
    variance_0 = jnp.where(drop["c"][:, None], 1.0, 0.25)
    alpha, sigma = PROCESS.signal(t)
    surprise = (flat - alpha * mean) / (alpha**2 * variance_0 + sigma**2)
    x_0, noise = mean + alpha * variance_0 * surprise, sigma * surprise
    return Prediction(x_0.reshape(x.shape), noise.reshape(x.shape), jnp.full_like(x, 0.3))


def weaker(x, t, conditions, drop):
    return model(0.9 * x, t, conditions, drop)


def samples(recipe, shape, **options):
    """Samples of this shape, flattened."""
    run = jax.jit(lambda keys: recipe(model, PROCESS, CONDITIONS, shape, keys, **options))
    return np.asarray(run(KEYS)).reshape(3, -1)


@functools.cache
def of_images(recipe):
    return samples(recipe, SHAPES[1])


@dataclasses.dataclass(frozen=True)
class Sum:
    """A log-density with gradient 1."""

    def __call__(self, x, t, conditions):
        return jnp.sum(x, axis=tuple(range(1, x.ndim)))


@pytest.mark.spread(2)
@each_shape
@pytest.mark.parametrize("sampler", some([*SAMPLERS, Rk45()], SAMPLERS[::4]), ids=str)
def test_samplers(sampler, shape):
    recipe = Recipe(sampler, GRID, ClassifierFree(), 4)
    np.testing.assert_allclose(samples(recipe, shape), of_images(recipe), rtol=1e-6, atol=1e-9)


@pytest.mark.spread(2)
@each_shape
@pytest.mark.parametrize(
    "guidance",
    [
        ClassifierFree(2.0, interval=Interval(0.1, 5.0)),
        ClassifierFree(3.0, Rescale(0.7)),
        ClassifierFree(0.6, CfgPlusPlus()),
        ClassifierFree(3.0, Projected(0.3, 2.0, -0.5)),
        PerCondition(("c",), (2.0,)),
        Cads(ClassifierFree(2.0)),
    ],
    ids=str,
)
def test_guidance(guidance, shape):
    recipe = Recipe(Ddim(), GRID, guidance, 4)
    np.testing.assert_allclose(samples(recipe, shape), samples(recipe, SHAPES[1]), rtol=1e-6, atol=1e-9)


@pytest.mark.spread(1)
@each_shape
@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": Autoguidance(2.0)},
        {"modifiers": (StaticThreshold(0.7), ClassifierGuidance(Sum(), 0.1))},
        {"modifiers": (DynamicThreshold(0.9, 0.5),)},
        {"grid": RePaint(GRID, 1, 2), "sampler": Ddim(1.0)},
        {"t_end": 0.01},
    ],
    ids=str,
)
def test_other_parts_of_a_recipe(changes, shape):
    recipe = dataclasses.replace(Recipe(Heun(), GRID, ClassifierFree(), 4), **changes)
    options = {"guiding_model": weaker} if "guidance" in changes else {}
    found, expected = (samples(recipe, each, **options) for each in (shape, SHAPES[1]))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@each_shape
def test_inpainting(shape):
    recipe = Recipe(Ddim(1.0), GRID, ClassifierFree(), 4, inpainting=Replacement())
    mask = np.arange(12) % 3 > 0

    def completed(shape):
        known = KnownData(
            jnp.full((3, *shape), 0.2), jnp.asarray(np.broadcast_to(mask, (3, 12)).reshape(3, *shape))
        )
        return samples(recipe, shape, known=known)

    found = completed(shape)
    np.testing.assert_allclose(found, completed(SHAPES[1]), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found[:, ~mask], 0.2, rtol=1e-12)


@each_shape
def test_inversion(shape):
    def noise(shape):
        def denoise(x, t):
            return model(x, t, CONDITIONS, {"c": jnp.zeros(3, bool)})

        x = jnp.asarray(MEAN).reshape(3, *shape)
        return np.asarray(invert(denoise, PROCESS, GRID(PROCESS, 4), x, KEYS, 1)).reshape(3, -1)

    np.testing.assert_allclose(noise(shape), noise(SHAPES[1]), rtol=1e-6, atol=1e-9)


def test_data_consistency_requires_images():
    low_res = Encoded(None, None, jnp.zeros((3, 1, 1, 3)), jnp.zeros(3, bool))
    denoise = DataConsistency()(stateless(lambda x, t: Prediction(x, x)), PROCESS, {"low_res": low_res}, KEYS)
    with pytest.raises(UserError, match=r"expected images.*got data of shape \(12,\)"):
        denoise(jnp.zeros((3, 12)), jnp.asarray(0.5))


def test_the_shapes_hold_the_same_number_of_values():
    assert {math.prod(shape) for shape in SHAPES} == {12}
