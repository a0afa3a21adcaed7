"""Conditions of every kind from the user to the network: numbers, images, defaults, levels, nulls."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.data import images as image_arrays
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Data
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.data_consistency import DataConsistency
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim

LEVELS = np.array([0.12, -0.2, 0.32])


class NoNoiseLevel(nn.Module):
    """A vector of zeros for every noise level."""

    @nn.compact
    def __call__(self, noise_label):
        return Embeddings(vector=jnp.zeros((noise_label.shape[0], 1)))


class Sum(nn.Module):
    """Predicts the sum of its conditions, of vectors and of spatial channels."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        shown = embeddings.vector[:, :, None, None] + jnp.zeros_like(x)
        return shown if embeddings.spatial is None else shown + embeddings.spatial


def a_generator(conditions, params, shape=(4, 4, 1), scale=1.0):
    """A model whose images are the sum of their conditions."""
    params = {"conditioner": {f"parts_{name}": tree for name, tree in params.items()}}
    params = jax.tree.map(
        lambda value: jnp.asarray(value, jnp.float32), params, is_leaf=lambda x: isinstance(x, list)
    )
    axes = ("data", "fsdp", "tensor")
    types = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((1, 1, 1), axes, axis_types=types, devices=jax.devices()[:1])
    denoiser = Denoiser(Sum(), Conditioner(NoNoiseLevel(), conditions), RectifiedFlow(), Data())
    return Generator(denoiser, params, Recipe(Ddim(), Uniform(), ClassifierFree(scale), 2), shape, mesh)


def constant(values, shape=(4, 4, 1)):
    return image_arrays.to_uint8(
        np.broadcast_to(np.reshape(values, (-1, 1, 1, 1)), (np.size(values), *shape))
    )


NUMBERS = {"size": Continuous(2, 1, default=(0.5, 0.0)), "label": ClassLabel(3, 1, null="zero")}
WEIGHTS = {"size": {"kernel": [[0.4], [0.2]]}, "label": {"table": LEVELS[:, None]}}


def test_a_condition_with_a_default_may_be_left_out():
    generator = a_generator(NUMBERS, WEIGHTS)
    np.testing.assert_array_equal(generator(label=[0, 2]), constant(LEVELS[[0, 2]] + 0.2))
    np.testing.assert_array_equal(generator(label=[0, 2], size=[1.0, 1.0]), constant(LEVELS[[0, 2]] + 0.6))
    each = generator(label=0, size=[[0.0, 0.0], [0.5, 1.0]])
    np.testing.assert_array_equal(each, constant(LEVELS[0] + np.array([0.0, 0.4])))
    np.testing.assert_array_equal(generator(label=[1], size=0.5), constant([LEVELS[1] + 0.3]))
    np.testing.assert_array_equal(generator(label=None, size=None), constant([0.0]))


def test_a_class_may_be_a_mixture():
    rows = np.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    found = a_generator(NUMBERS, WEIGHTS)(label=rows, size=0.0)
    np.testing.assert_array_equal(found, constant(rows @ LEVELS))


def test_conditions_without_a_null_are_in_both_branches_of_guidance():
    found = a_generator(NUMBERS, WEIGHTS, scale=2.0)(label=[0, 2])
    np.testing.assert_array_equal(found, constant(2 * (LEVELS[[0, 2]] + 0.2)))
    always = NUMBERS | {"size": Continuous(2, 1, default=(0.5, 0.0), null="none")}
    generator = a_generator(always, WEIGHTS, scale=2.0)
    np.testing.assert_array_equal(generator(label=[0, 2]), constant(2 * LEVELS[[0, 2]] + 0.2))
    np.testing.assert_array_equal(generator(label=[0], size=[[0.0, 1.0]]), constant([2 * LEVELS[0] + 0.2]))
    away = generator(label=[0], size=[0.0, 1.0], negative={"size": [1.0, 0.0]})
    np.testing.assert_array_equal(away, constant([2 * (LEVELS[0] + 0.2) - 0.4]))


LOW = np.random.default_rng(0).integers(60, 200, (3, 4, 4, 1), np.uint8)


def test_images_may_be_bytes_or_floats_for_each_or_for_all():
    generator = a_generator(
        {"low": ImageCondition(1, factor=2.0, method="nearest")}, {"low": {}}, (8, 8, 1), 3.0
    )
    large = LOW.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(generator(low=LOW), large)
    np.testing.assert_array_equal(generator(low=image_arrays.to_float(LOW)), large)
    np.testing.assert_array_equal(generator(2, low=LOW[1]), large[[1, 1]])


def test_a_model_generates_images_of_another_size():
    part = ImageCondition(1, factor=2.0, method="nearest", null="learned", drop_rate=0.1)
    generator = a_generator({"low": part}, {"low": {"null": [[[[0.2]]]]}}, (8, 8, 1), 2.0)
    wide = dataclasses.replace(generator, image_shape=(8, 16, 1))
    low = np.concatenate([LOW, LOW[:, :, ::-1]], axis=2)
    expected = 2 * image_arrays.to_float(low).repeat(2, axis=1).repeat(2, axis=2) - 0.2
    np.testing.assert_array_equal(wide(low=low), image_arrays.to_uint8(expected))
    np.testing.assert_array_equal(wide(low=None, guidance=1.0), constant([0.2], (8, 16, 1)))


def noisy(scale=1.0, label=False, **options):
    part = NoiseAugmented(ImageCondition(1), NoiseLevel(1, frequencies=1), RectifiedFlow(), **options)
    dense = {"kernel": [[0.0], [0.0]], "bias": [0.0]}
    zero_initialised = {"noise": {"dense_0": dense, "dense_1": {"kernel": [[0.0]], "bias": [0.0]}}}
    parts, params = ({"low": part}, {"low": zero_initialised})
    if label:
        parts, params = parts | {"label": NUMBERS["label"]}, params | {"label": WEIGHTS["label"]}
    return a_generator(parts, params, scale=scale)


@pytest.mark.slow
def test_a_noisy_condition_has_its_level_and_the_noise_of_its_image():
    generator = noisy(level=0.2, max_level=0.5)
    grey = np.zeros((3, 4, 4, 1), np.float32)
    generated = generator(low=grey)
    noise = image_arrays.to_float(generated) / 0.2
    assert 0.6 < noise.std() < 1.4
    assert len({image.tobytes() for image in generated}) == 3
    alone = dataclasses.replace(generator, batch_size=1)
    np.testing.assert_array_equal(alone(low=grey), generated)
    np.testing.assert_array_equal(generator(2, low=grey[0]), generated[:2])
    assert np.any(generator(low=grey, seed=1) != generated)
    np.testing.assert_array_equal(generator(low={"value": LOW, "level": 0.0}), LOW)
    levels = generator(low={"value": grey, "level": [0.0, 0.2, 0.4]})
    np.testing.assert_array_equal(levels[:2], [constant([0.0])[0], generated[1]])
    each = generator(
        low=[{"value": image, "level": level} for image, level in zip(grey, [0.0, 0.2, 0.4], strict=True)]
    )
    np.testing.assert_array_equal(each, levels)
    np.testing.assert_allclose(image_arrays.to_float(levels[2]), np.clip(0.4 * noise[2], -1, 1), atol=0.02)


def test_data_consistency_uses_the_image_without_its_noise():
    generator = noisy(level=0.4)
    recipe = dataclasses.replace(generator.recipe, modifiers=(DataConsistency("low"),))
    found = dataclasses.replace(generator, recipe=recipe)
    np.testing.assert_array_equal(found(low=LOW), LOW)
    np.testing.assert_array_equal(found(low={"value": LOW, "level": 0.2}), LOW)
    assert np.any(generator(low=LOW) != LOW)


def test_both_branches_of_guidance_see_the_same_noisy_condition():
    grey = np.zeros((2, 4, 4, 1), np.float32)
    conditional, guided = (
        noisy(scale, label=True, level=0.2)(low=grey, label=[0, 1]) for scale in (1.0, 2.0)
    )
    difference = image_arrays.to_float(guided) - image_arrays.to_float(conditional)
    np.testing.assert_allclose(difference, LEVELS[:2, None, None, None] + 0 * difference, atol=0.01)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, "low=: expected a value for this condition of the model"),
        ({"low": None}, "low=None: expected a value, since this condition has no null"),
        ({"low": LOW, "size": 1}, "size=1: expected a condition of the model"),
        ({"low": LOW, "n": 2}, "low: expected 2 values, one per image, got 3"),
        ({"low": {"value": LOW, "level": [0.1, 0.2]}}, "low: expected 2 values, one per image, got 3"),
        ({"low": {"value": LOW, "level": 0.9}}, "low.level=.*from 0 to 0.5"),
        ({"low": {"image": LOW}}, "expected a value and its level"),
        ({"low": LOW[..., 0]}, r"low="),
    ],
)
def test_invalid_conditions_raise(conditions, message):
    with pytest.raises(UserError, match=message):
        noisy(max_level=0.5)(**conditions)
