"""Resizing matrices against the libraries that they are named after, and closed forms."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.interpolation import (
    antialiased_bicubic,
    bicubic,
    bilinear,
    interpolate,
    tensorflow_bilinear,
)

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens"
SIZES = [(40, 56, 23, 31), (9, 13, 29, 20), (17, 17, 17, 40)]


def resized(matrix, image, height, width):
    rows, columns = matrix(image.shape[0], height), matrix(image.shape[1], width)
    return np.asarray(interpolate(jnp.asarray(image)[None], rows, columns))[0]


def an_image(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.float32)


@pytest.mark.parametrize("size", [(23, 31), (75, 75), (50, 61), (20, 28)])
def test_tensorflow_s_bilinear_resize(size):
    file = np.load(GOLDENS / "inception_full.npz")
    expected = file[f"out/tf1_resize/{size[0]}x{size[1]}"].transpose(0, 2, 3, 1)
    images = file["in/images_u8"].transpose(0, 2, 3, 1).astype(np.float32)
    found = np.stack([resized(tensorflow_bilinear, image, *size) for image in images])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_tensorflow_s_pixels_lie_at_corners():
    ramp = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(tensorflow_bilinear(4, 8) @ ramp, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    np.testing.assert_array_equal(bilinear(4, 8) @ ramp, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


@pytest.mark.parametrize("size", SIZES)
def test_pytorch_s_resizes(size):
    torch = pytest.importorskip("torch")
    image = an_image(*size[:2])
    given = torch.tensor(image.transpose(2, 0, 1))[None]
    kinds = {
        bilinear: {"mode": "bilinear"},
        bicubic: {"mode": "bicubic"},
        antialiased_bicubic: {"mode": "bicubic", "antialias": True},
    }
    for matrix, options in kinds.items():
        expected = torch.nn.functional.interpolate(given, size=size[2:], align_corners=False, **options)
        found = resized(matrix, image, *size[2:])
        np.testing.assert_allclose(found, expected[0].numpy().transpose(1, 2, 0), rtol=0, atol=1e-3)


def test_pytorch_s_bicubic_resize_by_a_factor():
    torch = pytest.importorskip("torch")
    image, factor = an_image(37, 37), (16 + 0.1) / 37
    given = torch.tensor(image.transpose(2, 0, 1))[None]
    expected = torch.nn.functional.interpolate(given, scale_factor=(factor, factor), mode="bicubic")
    assert expected.shape[2:] == (16, 16)
    matrix = bicubic(37, 16, factor)
    found = interpolate(jnp.asarray(image)[None], matrix, matrix)[0]
    np.testing.assert_allclose(found, expected[0].numpy().transpose(1, 2, 0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_pillow_s_bicubic_resize_of_floats(size):
    from PIL import Image

    image = an_image(*size[:2], 1)[..., 0]
    expected = Image.fromarray(image).resize((size[3], size[2]), Image.Resampling.BICUBIC)
    found = resized(antialiased_bicubic, image[..., None], *size[2:])[..., 0]
    np.testing.assert_allclose(found, np.asarray(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("matrix", [tensorflow_bilinear, bilinear, bicubic, antialiased_bicubic])
def test_constants_stay_and_the_same_size_is_the_identity(matrix):
    for old, new in ((5, 9), (9, 5), (299, 64)):
        np.testing.assert_allclose(matrix(old, new).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(matrix(7, 7), np.eye(7), atol=1e-6)
