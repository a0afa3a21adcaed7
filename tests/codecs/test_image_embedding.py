"""The codec of image embeddings: its encoder, its statistics, and its inverse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdiff.codecs.image_embedding import NAME, ImageEmbedding, statistics
from jaxdiff.codecs.protocol import Codec, KnownShapes
from jaxdiff.errors import UserError
from jaxdiff.models.clip_vision import ClipVisionEncoder, clip_pixels
from jaxdiff.runs.weights import FileWeights

ENCODER = ClipVisionEncoder(width=16, layers=1, heads=2, image_size=8, patch=4, projection=6)
CODEC = ImageEmbedding(ENCODER, FileWeights("nowhere.safetensors"))
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 10, 12, 3)).astype(np.uint8)
KEYS = jax.random.split(jax.random.key(0), 5)


@pytest.fixture(scope="module")
def frozen():
    tree = nn.meta.unbox(ENCODER.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3))))["params"]
    return {NAME: jax.tree.map(lambda x: x + 0.1, tree)}


@pytest.mark.slow
def test_it_is_a_codec_whose_networks_shapes_are_known(frozen):
    assert isinstance(CODEC, Codec)
    assert isinstance(CODEC, KnownShapes)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), frozen)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), CODEC.frozen_shapes()) == shapes
    assert CODEC.data_shape((10, 12, 3)) == (6,)


@pytest.mark.slow
def test_data_are_the_encoders_unit_vectors_times_the_root_of_their_width(frozen):
    data = CODEC.encode(frozen, jnp.asarray(IMAGES), KEYS)
    vectors = ENCODER.apply({"params": frozen[NAME]}, clip_pixels(jnp.asarray(IMAGES) / 255, 8)).vector
    expected = np.asarray(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(data, 6**0.5 * expected, rtol=1e-4, atol=1e-5)
    stored = CODEC.precompute(frozen, jnp.asarray(IMAGES))
    np.testing.assert_allclose(CODEC.encode({}, stored, KEYS), data, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.mean(data**2), 1.0, rtol=1e-5)
    samples = CODEC.stored(np.asarray(CODEC.decode(frozen, data)))
    np.testing.assert_allclose(samples, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        CODEC.encode(frozen, jnp.asarray(3 * samples), KEYS), data, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_statistics_make_data_of_unit_variance(frozen):
    vectors = np.asarray(CODEC.decode(frozen, CODEC.encode(frozen, jnp.asarray(IMAGES), KEYS)))
    standard = dataclasses.replace(CODEC, **statistics(vectors))
    data = standard.encode(frozen, jnp.asarray(IMAGES), KEYS)
    np.testing.assert_allclose(jnp.mean(data, axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(jnp.std(data, axis=0), 1.0, atol=1e-3)
    np.testing.assert_allclose(standard.decode(frozen, data), vectors, atol=1e-5)


def test_misfits_are_named():
    with pytest.raises(UserError, match="std=None: expected mean and std"):
        dataclasses.replace(CODEC, mean=(0.0,) * 6)
    with pytest.raises(UserError, match=r"mean=.*: expected a number for each of 6 channels"):
        dataclasses.replace(CODEC, mean=(0.0,) * 5, std=(1.0,) * 6)
    with pytest.raises(UserError, match=r"std=.*: expected numbers > 0"):
        dataclasses.replace(CODEC, mean=(0.0,) * 6, std=(1.0,) * 5 + (0.0,))
    with pytest.raises(UserError, match=r"image_shape=\(6,\): expected \(height, width, 3\) of an image"):
        CODEC.data_shape((6,))
    with pytest.raises(UserError, match=r"config.data.image=float32.*: expected images uint8"):
        CODEC.checked("config.data.image", np.zeros((2, 2, 3), np.float32))
