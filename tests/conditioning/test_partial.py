"""Partial images: which pixels are known, which are hints, and how image files are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.partial import PartialImage
from jaxdiff.data import images
from jaxdiff.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
ALPHA = np.random.default_rng(1).choice(np.uint8([0, 1, 127, 254, 255]), (2, 4, 5, 1))
RGBA = np.concatenate([RGB, ALPHA], axis=-1)
OPAQUE = ALPHA[..., 0] == 255


def drawn(part, values):
    return part.draw(jnp.asarray(values), jax.random.split(jax.random.key(0), len(values)), train=True)


@pytest.mark.parametrize("number", ["read", "draw"])
def test_opaque_pixels_are_known_and_others_have_the_fill(number):
    part = PartialImage(fill=0.25)
    found = part.read(RGBA) if number == "read" else np.asarray(drawn(part, RGBA))
    assert (found.shape, found.dtype) == ((2, 4, 5, 4), np.float32)
    np.testing.assert_array_equal(found[..., 3], np.where(OPAQUE, 1, -1))
    np.testing.assert_allclose(found[OPAQUE][:, :3], images.to_float(RGB)[OPAQUE], atol=1e-6)
    np.testing.assert_array_equal(found[~OPAQUE][:, :3], 0.25)
    colours, mask = part.known_pixels(found)
    np.testing.assert_array_equal(mask[..., 0], ~OPAQUE)
    np.testing.assert_array_equal(images.to_uint8(colours)[OPAQUE], RGB[OPAQUE])


@pytest.mark.parametrize("number", ["read", "draw"])
@pytest.mark.parametrize("depth", [1, 3])
def test_an_image_without_alpha_is_a_hint(number, depth):
    part, given = PartialImage(), RGB[..., :depth]
    found = part.read(given) if number == "read" else np.asarray(drawn(part, given))
    assert (found.shape, found.dtype) == ((2, 4, 5, 4), np.float32)
    np.testing.assert_array_equal(found[..., 3], -1)
    np.testing.assert_allclose(found[..., :3], np.broadcast_to(images.to_float(given), RGB.shape), atol=1e-6)
    assert part.known_pixels(found)[1].all()


def test_grey_images_have_one_channel_and_alpha():
    part = PartialImage(channels=1, fill=-1.0)
    found = part.read(RGBA[..., 2:])
    np.testing.assert_array_equal(found[..., 1], np.where(OPAQUE, 1, -1))
    np.testing.assert_array_equal(found[..., 0], np.where(OPAQUE, images.to_float(RGB[..., 2]), -1))
    np.testing.assert_array_equal(part.read(RGB[..., :1])[..., 1], -1)


def test_single_images_and_lists_of_all_kinds_are_read():
    part = PartialImage()
    np.testing.assert_array_equal(part.read(RGBA[0]), part.read(RGBA)[0])
    floats = part.read(RGBA[1])
    mixed = part.read([RGB[0], RGBA[0], RGB[0, ..., :1], floats])
    assert mixed.shape == (4, 4, 5, 4)
    for found, one in zip(mixed, (RGB[0], RGBA[0], RGB[0, ..., :1], RGBA[1]), strict=True):
        np.testing.assert_array_equal(found, part.read(one))


def test_floats_are_read_unchanged():
    values = np.random.default_rng(2).normal(size=(2, 4, 5, 4)).astype(np.float32)
    values[..., 3] = np.where(OPAQUE, 1, -1)
    part = PartialImage(fill=0.5)
    np.testing.assert_array_equal(part.read(values), values)
    np.testing.assert_array_equal(drawn(part, values), values)
    part.check(values)
    colours, mask = part.known_pixels(values)
    np.testing.assert_array_equal(colours, values[..., :3])
    np.testing.assert_array_equal(mask[..., 0], ~OPAQUE)


def test_colours_and_alpha_are_embedded_like_any_image():
    values, drop = jnp.asarray(PartialImage().read(RGBA)), jnp.array([False, True])
    for null, rate in (("none", 0.0), ("zero", 0.1), ("learned", 0.1)):
        part, plain = PartialImage(drop_rate=rate, null=null), ImageCondition(4, drop_rate=rate, null=null)
        params = part.init(jax.random.key(0), values, drop).get("params", {})
        params = jax.tree.map(lambda leaf: leaf + jnp.arange(4.0).reshape(leaf.shape), params)
        found = part.apply({"params": params}, values, drop).spatial
        np.testing.assert_array_equal(
            found, plain.apply({"params": params.get("image", {})}, values, drop).spatial
        )
        np.testing.assert_array_equal(found[0], values[0])


def test_its_size_is_the_size_of_the_images():
    assert PartialImage(2).example(3, (8, 12, 2)).shape == (3, 8, 12, 3)


HALF = np.where(np.arange(4) == 3, np.float32(0.5), PartialImage().read(RGBA))
NOT_FINITE = PartialImage().read(RGBA) * np.float32(np.nan)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PartialImage(0), "channels=0"),
        (lambda: PartialImage(fill=2.0), "fill=2.0"),
        (lambda: PartialImage(drop_rate=0.1), "drop_rate=0.1: expected 0 with null='none'"),
        (lambda: PartialImage().example(1), "data_shape=None"),
        (lambda: PartialImage().check(images.to_float(RGB), "x"), r"x=float32\[2, 4, 5, 3\]: expected images"),
        (lambda: PartialImage().check(RGBA[..., :2]), r"image=uint8\[2, 4, 5, 2\]"),
        (lambda: PartialImage().check(RGBA[0]), r"image=float32\[4, 5, 4\]"),
        (lambda: PartialImage().check(RGBA.astype(np.int64)), "image=int64"),
        (lambda: PartialImage().check(HALF, "x"), r"x.alpha=\[0.5\]: expected 1 where a pixel is known, else -1"),
        (lambda: PartialImage().check(NOT_FINITE), "NaN or infinity"),
    ],
)  # fmt: skip
def test_invalid_fields_and_values_raise(make, message):
    with pytest.raises(UserError, match=message):
        make()
