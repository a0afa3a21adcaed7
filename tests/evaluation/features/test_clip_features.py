"""CLIP as a feature space against transformers' `CLIPModel`."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.clip import ClipImages, ClipTexts
from jaxdiff.evaluation.features.profiles import PROFILES
from jaxdiff.models.clip_vision import MEAN, STD, clip_pixels
from tests.text_models import randomise

TEXT = {"vocab_size": 49408, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "eos_token_id": 49407, "bos_token_id": 49406}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 16, "patch_size": 4}  # fmt: skip
CAT = [49406, 320, 1125, 539, 320, 2368, 49407]
"""The ids of "a photo of a cat" in CLIP's vocabulary."""

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3)).astype(np.uint8)


@functools.cache
def a_peer():
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    return randomise(transformers.CLIPModel(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    a_peer().save_pretrained(path)
    return str(path)


def unit(tensor):
    vectors = getattr(tensor, "pooler_output", tensor).detach().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def image_vectors(pixels):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return unit(a_peer().get_image_features(torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2))))


def test_unit_vectors_of_images_are_transformers(folder):
    features = ClipImages(folder, batch_size=8)
    expected = image_vectors(clip_pixels(jnp.asarray(IMAGES) / 255, 16))
    assert features.dim == 24
    np.testing.assert_allclose(features(IMAGES), expected, rtol=0, atol=1e-4)
    squares = PROFILES["cmmd-pytorch"].resized(jnp.asarray(IMAGES), 16) / 255
    squares = (np.asarray(squares) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    found = ClipImages(folder, "cmmd-pytorch", batch_size=8)(IMAGES)
    np.testing.assert_allclose(found, image_vectors(squares), rtol=0, atol=1e-4)


def test_unit_vectors_of_texts_are_transformers(folder):
    torch = pytest.importorskip("torch")
    ids = np.full((3, 77), 49407)
    ids[0, : len(CAT)] = CAT
    ids[1:, 0], ids[1, 1:5], ids[2, 1:60] = 49406, [5, 6, 7, 8], np.arange(100, 159)
    with torch.no_grad():
        expected = unit(a_peer().get_text_features(torch.tensor(ids)))
    features = ClipTexts(folder, batch_size=8)
    np.testing.assert_allclose(features(ids), expected, rtol=0, atol=1e-4)
    texts = np.array(["a photo of a cat", "A photo  of a CAT"], object)
    np.testing.assert_allclose(features(texts), expected[[0, 0]], rtol=0, atol=1e-4)
    assert (features.dim, features.hash) == (24, ClipImages(folder).hash)


def test_a_file_without_the_encoder_is_refused(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT | {"vocab_size": 60}))
    text.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"expected a text encoder with text_projection\.weight"):
        ClipTexts(str(tmp_path)).dim  # noqa: B018
    with pytest.raises(UserError, match="expected those of CLIP's image encoder"):
        ClipImages(str(tmp_path)).dim  # noqa: B018
    with pytest.raises(UserError, match="profile='adm-tf'"):
        ClipImages(folder, "adm-tf")
