"""Images as conditions: where their pixels go, at any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.errors import UserError

RAMP = jnp.arange(6.0)[None, :, None, None] + 10 * jnp.arange(5.0)[None, None, :, None]


def spatial(part, images, drop=False, **params):
    return part.apply({"params": params}, images, jnp.full(len(images), drop)).spatial


def test_an_image_of_the_right_size_is_unchanged():
    np.testing.assert_array_equal(spatial(ImageCondition(1), RAMP), RAMP)


def test_bilinear_keeps_straight_lines_and_stops_at_the_edge():
    """An output pixel at o lies at ``(o + 1/2) / 4 - 1/2`` of the input."""
    y, x = (np.clip((np.arange(4 * n) + 0.5) / 4 - 0.5, 0, n - 1) for n in (6, 5))
    np.testing.assert_allclose(
        spatial(ImageCondition(1, factor=4.0), RAMP)[0, :, :, 0], y[:, None] + 10 * x, atol=1e-5
    )


def test_bicubic_keeps_parabolas():
    """Among cubic kernels, only the one with a = -1/2 is exact for parabolas (Keys 1981)."""
    y = (np.arange(24) + 0.5) / 2 - 0.5
    parabola = jnp.broadcast_to(jnp.arange(12.0)[None, :, None, None] ** 2, (1, 12, 3, 1))
    found = spatial(ImageCondition(1, factor=2.0, method="bicubic"), parabola)[0, 4:-4, 2, 0]
    np.testing.assert_allclose(found, y[4:-4] ** 2, atol=1e-4)


def test_nearest_repeats_pixels():
    found = spatial(ImageCondition(1, factor=3.0, method="nearest"), RAMP)
    np.testing.assert_array_equal(found, np.repeat(np.repeat(RAMP, 3, axis=1), 3, axis=2))


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_constant_image_stays_constant_to_its_edges(method, factor):
    found = spatial(ImageCondition(2, factor=factor, method=method), jnp.full((1, 8, 4, 2), 0.7))
    assert found.shape == (1, int(8 * factor), int(4 * factor), 2)
    np.testing.assert_allclose(found, 0.7, atol=1e-6)


def test_downsampled_images_are_low_passed():
    checks = jnp.asarray((-1.0) ** np.add.outer(np.arange(16), np.arange(16)))[None, :, :, None]
    found = spatial(ImageCondition(1, factor=0.5), checks)[:, 1:-1, 1:-1]
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_nulls():
    drop = jnp.array([True, False])
    images = jnp.stack([jnp.full((3, 3, 2), jnp.nan), jnp.ones((3, 3, 2))])
    learned = ImageCondition(2, factor=2.0, null="learned", drop_rate=0.1)
    params = learned.init(jax.random.key(0), images, drop)["params"]
    assert jax.tree.map(jnp.shape, params) == {"null": (1, 1, 1, 2)}
    colour = jnp.array([0.3, -0.2])
    for part, params, expected in (
        (learned, {"null": colour[None, None, None]}, colour),
        (ImageCondition(2, factor=2.0, null="zero"), {}, [0, 0]),
    ):
        found = part.apply({"params": params}, images, drop).spatial
        np.testing.assert_array_equal(
            found[0], jnp.broadcast_to(jnp.asarray(expected, jnp.float32), (6, 6, 2))
        )
        np.testing.assert_array_equal(found[1], 1)
    always = ImageCondition(2, factor=2.0)
    np.testing.assert_array_equal(always.apply({}, images[1:], drop[:1]).spatial, 1)


def test_bytes_become_numbers_between_minus_one_and_one():
    keys = jax.random.split(jax.random.key(0), 1)
    draw = ImageCondition(1).draw
    levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_allclose(
        draw(levels, keys, train=True), np.linspace(-1, 1, 256).reshape(1, 16, 16, 1), atol=1e-6
    )
    np.testing.assert_array_equal(draw(RAMP, keys, train=False), RAMP)


def test_its_size_follows_from_that_of_the_images():
    assert ImageCondition(2, factor=4.0).example(3, (32, 64, 1)).shape == (3, 8, 16, 2)
    assert ImageCondition(2, factor=1 / 8).example(3, (32, 64, 1)).shape == (3, 256, 512, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageCondition(0), "channels=0"),
        (lambda: ImageCondition(1, factor=0.0), "factor=0.0"),
        (lambda: ImageCondition(1, drop_rate=0.1), "drop_rate=0.1: expected 0 with null='none'"),
        (lambda: ImageCondition(1, factor=4.0).example(1, (30, 32, 1)), "factor=.*side of 30, got 7.5"),
        (lambda: ImageCondition(1).example(1), "data_shape=None"),
        (lambda: spatial(ImageCondition(1, factor=0.5), RAMP), "factor=0.5: .*side of 5, got 2.5"),
        (lambda: ImageCondition(1).check(np.zeros((2, 4, 4, 3))), r"image=float64\[2, 4, 4, 3\]"),
        (lambda: ImageCondition(1).check(np.zeros((4, 4, 1))), r"image=float64\[4, 4, 1\]"),
        (lambda: ImageCondition(1).check(np.zeros((2, 4, 4, 1), np.int64)), "image=int64"),
        (lambda: ImageCondition(1).check(np.full((2, 4, 4, 1), np.nan)), "NaN or infinity"),
    ],
)
def test_invalid_fields_and_values_raise(make, message):
    with pytest.raises(UserError, match=message):
        make()
