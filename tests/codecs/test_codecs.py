"""Codecs: encode and decode are inverses, and what they cannot take is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.codecs.identity import Identity
from jaxdiff.codecs.pixels import Pixels, scale_levels
from jaxdiff.codecs.protocol import Codec
from jaxdiff.data.images import to_float
from jaxdiff.errors import UserError

LEVELS = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
VECTORS = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 5)


@pytest.mark.parametrize("codec", [Pixels(), Identity()])
def test_codecs_satisfy_the_protocol(codec):
    assert isinstance(codec, Codec)
    assert not codec.frozen


@pytest.mark.parametrize(("codec", "stored"), [(Pixels(), LEVELS), (Identity(), VECTORS)])
def test_stored_values_survive_the_round_trip_exactly(codec, stored):
    x_0 = jax.jit(codec.encode)({}, codec.checked("x", stored), KEYS[: len(stored)])
    assert x_0.dtype == jnp.float32
    assert x_0.shape[1:] == codec.data_shape(stored.shape[1:])
    found = codec.stored(np.asarray(jax.jit(codec.decode)({}, x_0)))
    np.testing.assert_array_equal(found, stored)
    assert found.dtype == stored.dtype
    example = codec.example(3, stored.shape[1:])
    assert (example.shape, example.dtype) == ((3, *stored.shape[1:]), stored.dtype)


def test_pixels_on_an_accelerator_are_those_of_the_host_up_to_the_last_bit():
    np.testing.assert_allclose(jax.jit(scale_levels)(LEVELS), to_float(LEVELS), rtol=0, atol=1.2e-7)


def test_pixels_on_a_cpu_device_are_those_of_the_host():
    on_device = jax.jit(Pixels().encode)({}, LEVELS, KEYS[:4])
    np.testing.assert_array_equal(on_device, to_float(LEVELS))
    np.testing.assert_array_equal(
        Pixels().encode({}, on_device, KEYS[:4]), on_device
    )  # floats are data already


def test_unsuitable_values_are_errors():
    with pytest.raises(UserError, match=r"config.data.image=float32\[5, 7\]: expected uint8, got float32"):
        Pixels().checked("config.data.image", VECTORS)
    with pytest.raises(UserError, match=r"x=uint8\[4, 8, 8, 1\]: expected floats, got uint8"):
        Identity().checked("x", LEVELS)
    with pytest.raises(UserError, match=r"image_shape=\(7,\): expected three numbers"):
        Pixels().data_shape((7,))
    with pytest.raises(UserError, match=r"image_shape=\(\): expected at least one axis"):
        Identity().data_shape(())
    bad = VECTORS.copy()
    bad[3, 2] = np.nan
    with pytest.raises(UserError, match=r"examples\[3\]: expected finite numbers"):
        Identity().stored(bad)
