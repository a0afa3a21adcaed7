"""Images and embeddings as one condition: both ways to the same vector, and nulls that hide either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.encoded_image import EncodedImage
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.conditioning.vector_embedding import EmbeddedVector
from jaxdiff.errors import UserError
from jaxdiff.models.clip_vision import ClipVisionEncoder, clip_pixels

ENCODER = ClipVisionEncoder(width=16, layers=1, heads=2, image_size=8, patch=4, projection=6)
PART = EmbeddedVector(size=6, vector_width=8, tokens=2, width=4, drop_rate=0.3)
CONDITION = EncodedImage(ENCODER, PART)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 10, 12, 3)).astype(np.uint8)
SHOWN, KEYS = jnp.zeros(3, bool), jax.random.split(jax.random.key(0), 3)


@pytest.fixture(scope="module")
def params():
    tree = nn.meta.unbox(CONDITION.init(jax.random.key(1), CONDITION.example(2), jnp.zeros(2, bool)))[
        "params"
    ]
    return jax.tree.map(lambda x: x + 0.1, tree)


def embed(params, values, drop=SHOWN):
    drawn = CONDITION.draw(jax.tree.map(jnp.asarray, values), KEYS, False)
    return CONDITION.apply({"params": params}, drawn, drop)


@pytest.fixture(scope="module")
def vectors(params):
    return np.asarray(
        ENCODER.apply(
            {"params": params["encoder"]}, clip_pixels(jnp.asarray(IMAGES, jnp.float32) / 255, 8)
        ).vector
    )


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_image_is_its_unit_vector_in_the_other_condition(params, vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = PART.apply({"params": params["part"]}, jnp.asarray(6**0.5 * unit), SHOWN)
    found = embed(params, jnp.asarray(IMAGES))  # as batches hold them
    close(found, expected)
    assert (found.vector.shape, found.tokens.features.shape) == ((3, 8), (3, 2, 4))
    assert float(jnp.std(found.vector, axis=0).max()) > 0.01  # images differ


@pytest.mark.slow
def test_users_give_images_embeddings_of_any_length_or_both(params, vectors):
    expected = embed(params, jnp.asarray(IMAGES))
    for given in (IMAGES, 5 * vectors, [IMAGES[0], vectors[1], IMAGES[2]], list(vectors)):
        values = CONDITION.read(given)
        CONDITION.check(values)
        close(embed(params, values), expected)
    one = CONDITION.read(IMAGES[0])
    assert {name: array.shape for name, array in one.items()} == {
        "pixels": (8, 8, 3),
        "vector": (6,),
        "given": (),
    }


@pytest.mark.slow
def test_nothing_of_a_dropped_image_remains(params):
    one, other = (embed(params, jnp.asarray(each), ~SHOWN) for each in (IMAGES, IMAGES[::-1]))
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)
    assert (CONDITION.drop_rate, CONDITION.null) == (0.3, "learned")


def test_words_are_files(tmp_path, vectors):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", vectors)
    (image,) = CONDITION.parse(str(tmp_path / "a.png"), "image")
    np.testing.assert_array_equal(image, IMAGES[0])
    np.testing.assert_array_equal(CONDITION.parse(str(tmp_path / "a.npy"), "image"), vectors)
    np.testing.assert_array_equal(CONDITION.from_json("a.png", "image", tmp_path), IMAGES[0])
    np.testing.assert_allclose(
        CONDITION.from_json(vectors[0].tolist(), "image", tmp_path), vectors[0], rtol=1e-6
    )
    (tmp_path / "b.npy").write_text("no array")
    with pytest.raises(UserError, match=r"image=.*b.npy: expected embeddings, got an error"):
        CONDITION.parse(str(tmp_path / "b.npy"), "image")


def test_other_values_are_refused(vectors):
    with pytest.raises(
        UserError, match=r"image=float64\[3, 5\]: expected images uint8 .* or embeddings, floats \[n, 6\]"
    ):
        CONDITION.read(np.zeros((3, 5)))
    with pytest.raises(UserError, match=r"image=uint8\[3, 10, 12, 1\]"):
        CONDITION.read(IMAGES[..., :1])
    broken = vectors.copy()
    for value in (np.nan, 0.0):
        broken[1] = value
        with pytest.raises(
            UserError, match=r"image\[1\]: expected an embedding of finite numbers that are not all 0"
        ):
            CONDITION.check(CONDITION.read(broken))


def test_the_conditioner_draws_batches_of_images():
    conditioner = Conditioner(NoiseLevel(8), {"image": CONDITION})
    fields = conditioner.draw({"image": jnp.asarray(IMAGES)}, KEYS, train=True)
    conditioner.check({"image": jax.tree.map(np.asarray, fields["image"])})
    assert fields["image"]["pixels"].shape == (3, 8, 8, 3)
    assert not fields["image"]["given"].any()
