"""Feature extractors of networks: files, hashes, batches, and outputs that share a pass of the network."""

import functools
import hashlib
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.config import build, spec
from jaxdiff.errors import UserError
from jaxdiff.evaluation.features import weights
from jaxdiff.evaluation.features.dinov2 import MEAN, STD, Dinov2Features
from jaxdiff.evaluation.features.inception import Inception
from jaxdiff.evaluation.features.profiles import PROFILES
from jaxdiff.evaluation.metric import Batch
from jaxdiff.evaluation.protocols import FeatureExtractor, SharedExtractor
from jaxdiff.interop.dinov2 import dinov2_network, dinov2_params, dinov2_tensors, parameter_shapes
from jaxdiff.models.dinov2 import Dinov2
from tests.text_models import run

NETWORK = Dinov2(width=64, layers=2, heads=1, hidden=80, image_size=12, patch=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 14, 10, 3)).astype(np.uint8)


def random_tree(shapes, rng):
    if isinstance(shapes, dict):
        return {name: random_tree(each, rng) for name, each in shapes.items()}
    return (0.3 * rng.standard_normal(shapes.shape)).astype(np.float32)


@functools.cache
def tensors():
    return dinov2_tensors(
        NETWORK, random_tree(parameter_shapes(NETWORK), np.random.default_rng(1)), "original"
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("dinov2") / "weights.safetensors"
    save_file(tensors(), path)
    return str(path)


def extractor(file, **options):
    return Dinov2Features(file, "other", **{"size": 16, "batch_size": 8, **options})


def test_vectors_are_those_of_the_network_for_any_number_of_images(file):
    features = extractor(file)
    levels = PROFILES["edm2"].resized(jnp.asarray(IMAGES), 16)
    pixels = (levels / 255 - jnp.asarray(MEAN)[None, None, None]) / jnp.asarray(STD)[None, None, None]
    params = jax.tree.map(jnp.asarray, dinov2_params(dinov2_network(tensors()), tensors()))
    expected = run(dinov2_network(tensors()), params, pixels).vector
    found = features(IMAGES)
    assert (found.shape, found.dtype, features.dim) == ((11, 64), np.float32, 64)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features(IMAGES[:3]), found[:3], rtol=1e-5, atol=1e-5)
    assert features(IMAGES[:0]).shape == (0, 64)
    grey = IMAGES[..., :1]
    np.testing.assert_allclose(features(grey), features(np.repeat(grey, 3, axis=-1)), rtol=1e-5, atol=1e-5)


def test_the_hash_is_that_of_the_file_and_is_logged(file, caplog):
    expected = hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()
    with caplog.at_level(logging.INFO):
        assert extractor(file, size=20, sha256=expected[:12]).hash == expected
    assert f"sha256 {expected}" in caplog.text
    with pytest.raises(UserError, match=rf"sha256='00000000': expected the hash of .*, got {expected}"):
        extractor(file, sha256="00000000").hash  # noqa: B018
    with pytest.raises(UserError, match=r"sha256='ABC': expected 8 to 64 hexadecimal digits"):
        extractor(file, sha256="ABC")


def test_the_model_in_the_file_must_be_the_one_that_is_named(file):
    with pytest.raises(
        UserError, match=r"model='ViT-L/14': expected the model in .* got width 64, 2 layers and 0 reg"
    ):
        Dinov2Features(file).dim  # noqa: B018
    with pytest.raises(UserError, match=r"path='.*none.pth': expected a readable file"):
        Dinov2Features("none.pth").dim  # noqa: B018


def test_images_that_are_not_stored_ones_are_refused(file):
    with pytest.raises(UserError, match=r"expected uint8 \[n, height, width, 3\]"):
        extractor(file)(IMAGES[..., :2])


def test_a_name_needs_no_file_and_states_the_space():
    named = Dinov2Features("none.pth", "ViT-B/14 with registers")
    assert named.name == "DINOv2 ViT-B/14 with registers at 224 pixels"
    inception = Inception("none.pth")
    assert (inception.name, inception.dim, inception.profile) == ("Inception-v3 (FID)", 2048, "adm-tf")
    assert isinstance(inception, SharedExtractor)
    assert isinstance(named, FeatureExtractor)
    assert build(spec(Inception, weights="a", output="spatial")) == Inception("a", output="spatial")


def test_other_weights_are_no_fid(file):
    with pytest.raises(UserError, match=r"expected pt_inception-2015-12-05 .*sha256='\w{8}' to use this one"):
        Inception(file).hash  # noqa: B018
    digits = hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:8]
    other = Inception(file, sha256=digits)
    assert "FID" not in other.name
    assert digits in other.name
    with pytest.raises(UserError, match="expected those of InceptionV3"):
        other(IMAGES)
    known = next(iter(weights.KNOWN))
    assert Inception("none.pth", sha256=known[:8]).name == "Inception-v3 (FID)"


class Twin:
    """A network of two outputs that counts its passes."""

    passes = 0

    def __init__(self, output):
        self.output, self.name = output, output

    def __eq__(self, other):
        return isinstance(other, Twin) and other.output == self.output

    def __hash__(self):
        return hash(self.output)

    def __call__(self, images):
        return self.shared(images)[self]

    def shared(self, images):
        Twin.passes += 1
        return {Twin("sum"): images.sum(axis=(1, 2, 3))[:, None], Twin("first"): images[:, 0, 0, :]}


def test_outputs_of_one_network_share_one_pass_over_a_batch():
    Twin.passes = 0
    labels = np.zeros(len(IMAGES), int)
    batch = Batch("samples", IMAGES, {}, labels, labels)
    np.testing.assert_array_equal(batch.features(Twin("first")), IMAGES[:, 0, 0])
    np.testing.assert_array_equal(batch.features(Twin("sum"))[:, 0], IMAGES.sum(axis=(1, 2, 3)))
    chosen = np.arange(len(IMAGES)) % 2 == 0
    np.testing.assert_array_equal(batch.rows(chosen).features(Twin("first")), IMAGES[chosen, 0, 0])
    assert Twin.passes == 1
