"""Recipes that have a noise process or a noise label of their own: the generator shows the model what they say."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data import images as image_arrays
from jaxdiff.embeddings import Embeddings
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import RoundedIndex, StepIndex
from jaxdiff.process.prediction import Data, LearnedVariance, V, with_label
from jaxdiff.process.table import LinearBetas, Table
from jaxdiff.sampling.grids.continuous import Uniform
from tests.generation.test_generator import SHAPE, Mean, a_generator

TABLE = VariancePreserving(Table(LinearBetas(0.01, 0.3, 10)))
LEVELS = VariancePreserving(Table(LinearBetas(0.01, 0.3, 10), linear="sigma / alpha"))
NOISE = np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)


def with_recipe(generator, **changes):
    return dataclasses.replace(generator, recipe=dataclasses.replace(generator.recipe, **changes))


class Shown(nn.Module):
    """The noise label, a tenth of it, as the first number of the vector."""

    @nn.compact
    def __call__(self, noise_label):
        return Embeddings(vector=jnp.stack([noise_label / 10, 0 * noise_label], axis=-1))


def test_the_model_is_shown_the_label_of_the_recipe():
    plain = a_generator(grid=Uniform(0.47), process=TABLE, parameterization=Data(StepIndex(10)), steps=1)
    conditioner = plain.denoiser.conditioner.clone(noise=Shown())
    params = jax.tree.map(jnp.zeros_like, plain.params) | {"network": plain.params["network"]}
    plain = dataclasses.replace(
        plain, denoiser=plain.denoiser.clone(conditioner=conditioner, network=Mean()), params=params
    )
    for generator, label in ((plain, 3.7), (with_recipe(plain, noise_label=RoundedIndex(10)), 4.0)):
        expected = image_arrays.to_uint8(np.full((1, *SHAPE), label / 10, np.float32))
        np.testing.assert_allclose(generator(label=1).astype(int), expected, atol=1)


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("initial", ["process", "unit"])
def test_the_model_has_the_process_of_the_recipe(initial):
    """A model that predicts v = 0 in one step: ``x_0 = alpha x``, in an edit of an image too."""
    plain = a_generator(
        grid=Uniform(0.45), process=TABLE, parameterization=V(), gain=0.0, steps=1, initial=initial
    )
    found = []
    for generator, process in ((plain, TABLE), (with_recipe(plain, process=LEVELS), LEVELS)):
        alpha, sigma = (float(value) for value in process.signal(jnp.asarray(0.45)))
        scale = sigma if initial == "process" else 1.0
        images = generator(label=0, noise=NOISE)
        np.testing.assert_allclose(images, image_arrays.to_uint8(alpha * scale * NOISE), atol=1)
        given = image_arrays.to_uint8(NOISE)
        edited = generator.edit(given, 1.0, label=0, before=None, seed=3) / 127.5 - 1
        drawn = generator._noise(2, 3)
        np.testing.assert_allclose(edited, np.clip(alpha * (alpha * NOISE + sigma * drawn), -1, 1), atol=0.02)
        found.append(alpha)
    assert abs(found[0] - found[1]) > 1e-3


def test_a_label_inside_a_learned_variance_is_replaced():
    assert with_label(LearnedVariance(V(StepIndex(5))), RoundedIndex(7)) == LearnedVariance(
        V(RoundedIndex(7))
    )
