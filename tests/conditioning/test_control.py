"""Control images: their values, sizes and scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.control import AdapterImage, ControlImage
from jaxdiff.config import build, describe
from jaxdiff.errors import UserError
from jaxdiff.models.t2i_adapter import AdapterStage, T2IAdapter

PART = ControlImage(3, factor=1 / 8, control="edges", scale=0.5)
BYTES = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
NONE = jnp.zeros(2, bool)


def test_bytes_become_floats_between_0_and_1_and_reach_the_control_of_their_name():
    drawn = PART.draw(jnp.asarray(BYTES), jax.random.split(jax.random.key(0), 2), train=False)
    np.testing.assert_allclose(drawn, BYTES / 255, rtol=1e-6)
    assert PART.draw(drawn, jax.random.split(jax.random.key(0), 2), train=True) is drawn
    found = PART.apply({}, drawn, NONE)
    assert [*found.controls] == ["edges"]
    np.testing.assert_array_equal(found.controls["edges"].image, drawn)
    np.testing.assert_array_equal(found.controls["edges"].scale, [0.5, 0.5])


def test_a_control_image_has_the_size_of_the_generated_image():
    assert PART.image_shape((64, 96, 4)) == (512, 768, 3)
    assert PART.example(2, (2, 3, 4)).shape == (2, 16, 24, 3)
    assert build(describe(PART)) == PART
    assert PART.null == "none"


def test_shown_images_have_the_colours_of_the_control_image():
    np.testing.assert_array_equal(PART.images(BYTES), BYTES)
    np.testing.assert_allclose(PART.images(BYTES / 255), BYTES / 127.5 - 1, atol=1e-12)


@pytest.mark.parametrize("wrong", [BYTES / 127.5 - 1, 255.0 * BYTES, BYTES[..., :1], BYTES[0]])
def test_other_values_are_refused(wrong):
    PART.check(BYTES, "edges")
    PART.check(BYTES / 255, "edges")
    with pytest.raises(UserError, match=r"edges=.*expected .*Fix: "):
        PART.check(wrong, "edges")


def test_impossible_conditions_are_refused():
    with pytest.raises(UserError, match="scale=inf: expected finite numbers"):
        PART.clone(scale=float("inf"))
    with pytest.raises(UserError, match="channels=0"):
        ControlImage(0)


def test_the_features_of_an_adapter_are_scaled_and_placed():
    adapter = T2IAdapter((AdapterStage(4), AdapterStage(8, down=True)), patch=4, blocks=1)
    part = AdapterImage(3, factor=1 / 4, adapter=adapter, places=("stem", "down_0"), scale=-2.0)
    image = jnp.asarray(BYTES, jnp.float32) / 255
    params = jax.jit(adapter.init)(jax.random.key(0), image)
    plain = jax.jit(adapter.apply)(params, image)
    found = jax.jit(part.apply)(params, image, NONE).residuals
    for place, expected in zip(("stem", "down_0"), plain, strict=True):
        np.testing.assert_allclose(found.features[place], -2 * expected, rtol=1e-5, atol=1e-6)
    assert not found.skips


def test_a_small_image_is_enlarged_before_it_is_read():
    part = ControlImage(1, factor=2.0, control="sketch", enlarged=2)
    assert part.example(1, (8, 8, 1)).shape == (1, 4, 4, 1)
    values = jnp.asarray(np.random.default_rng(0).random((2, 4, 4, 1), np.float32))
    found = part.apply({}, values, jnp.zeros(2, bool)).controls["sketch"].image
    np.testing.assert_array_equal(found, jax.image.resize(values, (2, 8, 8, 1), "bilinear"))
