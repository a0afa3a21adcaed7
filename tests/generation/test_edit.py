"""Editing with a model that predicts ``mean + slope x`` per pixel, so that every step has a closed form."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data import images as image_arrays
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import V
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids.continuous import Karras, Uniform
from jaxdiff.sampling.grids.restart import RePaint
from jaxdiff.sampling.grids.truncated import Truncated
from jaxdiff.sampling.noise import fold_in, noise_like
from jaxdiff.sampling.recipe import PRIOR
from tests.generation.test_generator import MEANS, SHAPE, a_generator

IMAGES = np.random.default_rng(0).integers(60, 200, (3, *SHAPE), np.uint8)
EDM = (Karras(0.005, 5.0), VariancePreserving(Cosine()))


def a_v_model(**changes):
    grid, process = EDM
    return a_generator(grid=grid, process=process, slope=0.1, steps=8, parameterization=V(), **changes)


def noise_of(n, seed):
    """The noise that sampling draws for the first n images of a seed."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(n, dtype=np.uint32))
    return np.asarray(noise_like(fold_in(keys, PRIOR), jnp.zeros((n, *SHAPE))))


def test_one_step_is_the_prediction_for_the_diffused_image():
    generator = a_generator(slope=0.3, steps=4)  # times 1, 3/4, 1/2, 1/4 of a rectified flow
    found = generator.edit(IMAGES, 0.25, label=[0, 1, 4], seed=5)
    noise = noise_of(3, 5)
    diffused = 0.75 * image_arrays.to_float(IMAGES) + 0.25 * noise
    expected = image_arrays.to_uint8(MEANS[[0, 1, 4]][:, None, None, None] + 0.3 * diffused)
    np.testing.assert_allclose(found.astype(int), expected, atol=1)
    assert np.any(generator.edit(IMAGES, 0.25, label=[0, 1, 4], seed=6) != found)
    one = generator.edit(IMAGES[1], 0.25, label=[0, 1, 4], seed=5)
    np.testing.assert_array_equal(one[1], found[1])
    assert np.any(one[0] != found[0])


def test_strength_1_starts_with_noise_and_small_strengths_with_the_image():
    generator = a_v_model()
    edited = generator.edit(IMAGES, 1.0, label=2, seed=1).astype(int)
    drawn = generator(3, label=2, seed=1, noise=noise_of(3, 1) + image_arrays.to_float(IMAGES) / 5)
    np.testing.assert_allclose(edited, drawn, atol=1)  # 5 is sigma / alpha where the grid begins
    assert np.abs(generator.edit(IMAGES, 0.1, label=2).astype(int) - IMAGES).max() < 8


def test_noise_of_a_seed_is_what_sampling_draws():
    generator = a_v_model()
    np.testing.assert_array_equal(generator(3, label=1, seed=9), generator(label=1, noise=noise_of(3, 9)))


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_an_inverted_image_is_reproduced_under_its_own_conditions_only(strength):
    """v, and so every step, is linear in the mean: the image changes as much as an image of zeros."""
    generator = a_v_model()
    images = IMAGES // 4 + np.uint8(100)  # nothing is cut off at black or white
    before = {"label": [0, 1, 2]}
    options = {"before": before, "iterations": 20, "strength": strength}
    back = generator.edit(images, **options, label=[0, 1, 2])
    np.testing.assert_allclose(back.astype(int), images, atol=2)
    moved = generator.edit(images, **options, label=[3, 4, 4]).astype(int) - back
    grey = np.full_like(images, 128)
    alone = generator.edit(grey, **options, label=[3, 4, 4]).astype(int) - generator.edit(
        grey, **options, **before
    )
    np.testing.assert_allclose(moved, alone, atol=2)
    assert np.abs(moved).min() > 3


def test_pixels_outside_the_mask_are_unchanged():
    generator, mask = a_v_model(), np.array([[True, False, True], [False, False, True]])
    for options in ({}, {"before": {"label": 0}}):
        edited = generator.edit(IMAGES, 0.5, label=4, **options)
        part = generator.edit(IMAGES, 0.5, label=4, mask=mask, **options)
        np.testing.assert_array_equal(part[:, ~mask], IMAGES[:, ~mask])
        np.testing.assert_allclose(part[:, mask].astype(int), edited[:, mask], atol=1)
        assert np.all(edited[:, ~mask] != IMAGES[:, ~mask])


class MeanOfPixels(nn.Module):
    """Predicts its condition, and `slope` times the mean of all pixels."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        gain, slope = (self.param(name, nn.initializers.ones, ()) for name in ("gain", "slope"))
        mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
        return gain * embeddings.vector[:, 0][:, None, None, None] + slope * mean + 0 * x


def test_pixels_inside_the_mask_depend_on_the_image_around_it():
    generator = a_generator(slope=0.9, steps=4)
    generator = dataclasses.replace(generator, denoiser=generator.denoiser.clone(network=MeanOfPixels()))
    mask = np.array([[True, False, False], [False, False, False]])
    edited = generator.edit(IMAGES, 0.25, label=1)
    part = generator.edit(IMAGES, 0.25, label=1, mask=mask)
    np.testing.assert_allclose(part[:, mask].astype(int), edited[:, mask], atol=1)


def test_an_image_of_another_size_is_edited_as_such():
    wide = np.concatenate([IMAGES, IMAGES], axis=2)
    found = a_v_model().edit(wide, 0.5, label=4, image_size=(2, 6), before={"label": 0}, iterations=3)
    alone = a_v_model().edit(IMAGES, 0.5, label=4, before={"label": 0}, iterations=3)
    np.testing.assert_allclose(found[:, :, 3:].astype(int), alone, atol=1)


@pytest.mark.parametrize(("fraction", "left"), [(1.0, 8), (0.5, 4), (0.49, 3), (0.3, 2), (0.01, 1)])
def test_a_truncated_grid_is_the_end_of_its_grid(fraction, left):
    grid, process = EDM
    found = Truncated(grid, fraction)(process, 8)
    np.testing.assert_array_equal(found, grid(process, 8)[-left:])
    assert jnp.all(jnp.diff(found) < 0)


@pytest.mark.spread(2)
@pytest.mark.parametrize("steps", [7, 10, 25, 50])
def test_as_many_steps_are_left_as_in_diffusers(steps):
    """In the same arithmetic, whose ``50 * 0.58`` is 28.999999999999996."""
    for strength in np.arange(1, 101) / 100:
        found = len(Truncated(Uniform(), float(strength))(EDM[1], steps))
        assert found == max(min(int(steps * strength), steps), 1)


def test_edits_do_not_depend_on_the_scale_of_initial_noise():
    """An image is diffused to its level by the process, whatever sampling without an image begins with."""
    generator = a_v_model()
    unit = dataclasses.replace(generator, recipe=dataclasses.replace(generator.recipe, initial="unit"))
    assert np.any(unit(2, label=1) != generator(2, label=1))
    for options in ({}, {"before": {"label": 0}}):
        edits = [each.edit(IMAGES, 0.5, label=1, **options) for each in (generator, unit)]
        np.testing.assert_array_equal(*edits)


@pytest.mark.slow
def test_inverted_noise_is_that_of_the_recipe():
    generator = a_v_model()
    unit = dataclasses.replace(generator, recipe=dataclasses.replace(generator.recipe, initial="unit"))
    noise = unit.invert(IMAGES, label=0, iterations=20)
    np.testing.assert_allclose(unit(label=0, noise=noise).astype(int), IMAGES, atol=2)
    assert np.abs(noise / generator.invert(IMAGES, label=0, iterations=20) - 1).min() > 0.01


def test_invalid_edits_raise():
    generator = a_generator()
    for strength in (0.0, 1.5, -0.1):
        with pytest.raises(UserError, match=f"strength={strength}: expected a fraction of the steps"):
            generator.edit(IMAGES, strength, label=1)
    with pytest.raises(UserError, match=r"fraction=2.0: expected"):
        Truncated(Uniform(), 2.0)
    with pytest.raises(UserError, match=r"images=uint8\[3, 2, 3, 1\]: expected uint8 \[2, 2, 3, 1\]"):
        generator.edit(IMAGES, label=[1, 2])
    with pytest.raises(UserError, match=r"grid=RePaint.*only decreases"):
        a_generator(grid=RePaint(Uniform(), 1, 2)).edit(IMAGES, label=1)
    with pytest.raises(UserError, match="label=: expected a value for this condition of the model"):
        generator.edit(IMAGES, label=1, before={})
    assert dataclasses.replace(generator, batch_size=2).edit(IMAGES, label=1).shape == IMAGES.shape
