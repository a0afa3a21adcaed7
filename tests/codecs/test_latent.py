"""The codec of latent diffusion: scale, posterior, dtype, slices, tiles, and its place in training."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxdiff.codecs.latent import Latent, parameter_shapes
from jaxdiff.codecs.protocol import Codec
from jaxdiff.codecs.tiling import Tiles
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.config import build, describe
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.images import to_float
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.experiment import Experiment
from jaxdiff.interop.autoencoders import entries
from jaxdiff.interop.mapping import to_params
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.process.prediction import Edm
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.runs.weights import FileWeights
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.train import train
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW
from jaxdiff.trees import paths
from tests.models.autoencoders import NETWORKS, close, draw, numbers, peer, random_params, run, run_peer
from tests.selection import some
from tests.tasks.models import Label

NETWORK = AutoencoderKL((4, 4, 8), 1, latent_channels=2, groups=2)
WEIGHTS = FileWeights("autoencoder.safetensors")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
KEYS = jax.random.split(jax.random.key(0), 5)


@functools.cache
def frozen(network=NETWORK):
    return {"autoencoder": random_params(network)}


def codec(**options):
    return Latent(NETWORK, WEIGHTS, **options)


_encode = jax.jit(lambda codec, *arguments: codec.encode(*arguments), static_argnums=0)
_decode = jax.jit(lambda codec, *arguments: codec.decode(*arguments), static_argnums=0)


def encode(codec, images=IMAGES, keys=KEYS, params=None):
    return _encode(codec, params or frozen(codec.network), jnp.asarray(images), keys)


def decode(codec, x_0, params=None):
    return _decode(codec, params or frozen(codec.network), jnp.asarray(x_0))


def moments(images=IMAGES):
    return run(NETWORK, frozen()["autoencoder"], "encode", to_float(images))


def test_it_is_a_codec_of_bytes():
    made = codec()
    assert isinstance(made, Codec)
    assert dict(made.frozen) == {"autoencoder": WEIGHTS}
    assert made.data_shape((16, 24, 3)) == (4, 6, 2)
    assert encode(made).shape == (5, 4, 6, 2)
    decoded = decode(made, encode(made))
    assert decoded.dtype == jnp.float32
    assert made.stored(np.asarray(decoded)).shape == IMAGES.shape
    assert made.example(2, (16, 24, 3)).dtype == np.uint8
    assert build(describe(made)) == made
    assert hash(made) == hash(build(describe(made)))


def test_floats_are_images_already():
    made = codec(posterior="mode")
    np.testing.assert_array_equal(encode(made, to_float(IMAGES)), encode(made))


@pytest.mark.parametrize(
    ("options", "scaled", "unscaled"),
    [
        ({}, lambda z: z * 0.18215, lambda x: x / 0.18215),
        ({"scaling_factor": 0.13025}, lambda z: z * 0.13025, lambda x: x / 0.13025),
        (
            {"scaling_factor": 1.5305, "shift_factor": 0.0609},
            lambda z: (z - 0.0609) * 1.5305,
            lambda x: x / 1.5305 + 0.0609,
        ),
        (
            {"scaling_factor": 0.13025, "latents_mean": (-1.5, 2.0), "latents_std": (8.0, 0.3)},
            lambda z: (z - np.array([-1.5, 2.0])) * 0.13025 / np.array([8.0, 0.3]),
            lambda x: x * np.array([8.0, 0.3]) / 0.13025 + np.array([-1.5, 2.0]),
        ),
    ],
)
def test_latents_are_shifted_and_scaled_as_published(options, scaled, unscaled):
    made, z = codec(**options), draw(3, 4, 6, 2)
    for ours, theirs in ((made.scaled, scaled), (made.unscaled, unscaled)):
        expected = theirs(z.astype(float))
        np.testing.assert_allclose(
            ours(jnp.asarray(z)), expected, rtol=3e-7, atol=3e-7 * np.abs(expected).max()
        )


def test_images_are_encoded_to_scaled_latents_and_decoded_from_them():
    made = codec(posterior="mode", scaling_factor=1.5305, shift_factor=0.0609)
    x_0 = encode(made)
    close(x_0, (np.asarray(moments()[0]) - 0.0609) * 1.5305)
    z = np.asarray(x_0) / 1.5305 + 0.0609
    close(decode(made, x_0), np.asarray(run(NETWORK, frozen()["autoencoder"], "decode", z)))


@pytest.mark.slow
def test_the_posterior_is_sampled_with_the_key_of_each_image():
    mean, log_variance = moments()
    made = codec(scaling_factor=1.0)
    noise = (encode(made) - mean) / np.exp(log_variance / 2)
    expected = np.stack([jax.random.normal(key, mean.shape[1:]) for key in KEYS])
    np.testing.assert_allclose(noise, expected, atol=1e-4)
    np.testing.assert_allclose(encode(made, IMAGES[3:4], KEYS[3:4])[0], encode(made)[3], atol=1e-6)
    mode = encode(dataclasses.replace(made, posterior="mode"))
    np.testing.assert_allclose(mode, mean, atol=1e-6)


@pytest.mark.spread(1)
@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_posteriors_stand_for_their_images(posterior):
    """The same latents for the same keys, without the network."""
    made = codec(posterior=posterior, scaling_factor=0.7)
    posteriors = jax.jit(made.precompute)(frozen(), jnp.asarray(IMAGES))
    close(made.encode({}, posteriors, KEYS), np.asarray(encode(made)))


def test_an_autoencoder_without_variance_has_one_sample():
    network = NETWORKS["tiny"]
    made = Latent(network, WEIGHTS, scaling_factor=1.0)
    found = encode(made)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, encode(dataclasses.replace(made, posterior="mode")))


@pytest.mark.slow
def test_float16_is_computed_in_float32_where_it_would_overflow():
    """SDXL's trap: the features of its decoder exceed 65,504."""
    network = NETWORK.clone(middle_attention=False)
    half, plain = network.clone(dtype="float16"), frozen(network)["autoencoder"]
    stem = {name: 3e4 * value for name, value in plain["decoder"]["stem"].items()}
    assert max(np.abs(value).max() for value in stem.values()) < 65504
    params = {"autoencoder": {**plain, "decoder": {**plain["decoder"], "stem": stem}}}
    z = 4 * draw(2, 4, 6, 2)
    upcast, narrow = (Latent(half, WEIGHTS, force_upcast=upcast) for upcast in (True, False))
    np.testing.assert_array_equal(decode(upcast, z, params), decode(Latent(network, WEIGHTS), z, params))
    assert not np.isfinite(decode(narrow, z, params)).all()
    with pytest.raises(UserError, match="expected finite values"):
        narrow.stored(np.asarray(decode(narrow, z, params)))


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("dtype", "upcast", "computed"),
    [("float16", True, set()), ("float16", False, {"f16"}), ("bfloat16", True, {"bf16"}), ("float32", True, set())],
)  # fmt: skip
def test_only_float16_is_upcast(dtype, upcast, computed):
    """The types of narrow arrays in the programs."""
    made = Latent(NETWORK.clone(dtype=dtype), WEIGHTS, force_upcast=upcast)
    for method, given in ((made.decode, (draw(2, 4, 6, 2),)), (made.encode, (to_float(IMAGES), KEYS))):
        text = str(jax.make_jaxpr(method)(frozen(), *given))
        assert set(re.findall(r"\b(b?f16)\[", text)) == computed


@pytest.mark.slow
def test_slices_are_the_whole():
    """Five images in slices of two: the last slice is smaller."""
    whole, sliced = codec(), codec(slices=2)
    np.testing.assert_allclose(encode(sliced), encode(whole), atol=1e-6)
    x_0 = draw(5, 4, 6, 2)
    np.testing.assert_allclose(decode(sliced, x_0), decode(whole, x_0), atol=1e-5)


def products(codec, images):
    """The largest array that a program for decoding makes, by the count of its numbers."""
    abstract = jax.ShapeDtypeStruct((images, 16, 16, 2), jnp.float32)
    text = str(jax.make_jaxpr(codec.decode)(frozen(), abstract))
    return text.count(f"f32[{images},64,64,4]")


def test_slices_hold_the_features_of_one_slice():
    assert products(codec(), 6) > 0
    assert products(codec(slices=2), 6) == 0
    assert products(codec(slices=2), 2) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "slices"), some([((30, 40), None), ((20, 36), 1)], [((20, 36), 1)]))
def test_tiles_are_those_of_diffusers(size, slices):
    """Blended along both axes, with edges that are smaller than the overlap."""
    network, model = NETWORKS["decoder_conv"], peer("decoder_conv", sample_size=32)
    params = {"autoencoder": to_params(entries(network), numbers(model), parameter_shapes(network))}
    made = Latent(network, WEIGHTS, 1.0, posterior="mode", tiles=Tiles(32, 0.25), slices=slices)
    x, z = draw(2, *size, 1), draw(2, size[0] // 2, size[1] // 2, 4, seed=1)
    model.enable_tiling()
    latents = run_peer(lambda x: model.encode(x).latent_dist.mode(), x)
    images = run_peer(lambda z: model.decode(z).sample, z)
    model.disable_tiling()
    whole = run_peer(lambda z: model.decode(z).sample, z)
    assert np.abs(whole - images).max() > 1e-3
    close(encode(made, x, KEYS[:2], params), latents)
    close(decode(made, z, params), images)


def test_an_image_no_larger_than_a_tile_is_whole():
    network = NETWORKS["decoder_conv"]
    whole, tiled = (Latent(network, WEIGHTS, tiles=tiles) for tiles in (None, Tiles(32)))
    for sides, same in (((16, 12), True), ((12, 17), False)):
        z = jnp.zeros((1, *sides, 4))
        found, expected = (str(jax.make_jaxpr(made.decode)(frozen(network), z)) for made in (tiled, whole))
        assert (found == expected) == same


@pytest.mark.slow
def test_the_default_tiles_are_512_pixels_with_a_quarter_of_overlap():
    assert Tiles() == Tiles(512, 0.25)
    network = AutoencoderKL((4,) * 4, 1, groups=2)
    made, shapes = Latent(network, WEIGHTS, tiles=Tiles()), {"autoencoder": parameter_shapes(network)}
    x_0 = jax.ShapeDtypeStruct((1, 128, 96, 4), jnp.float32)
    assert jax.eval_shape(made.decode, shapes, x_0).shape == (1, 1024, 768, 3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((20, 18, 3), r"image_shape=\(20, 18, 3\): expected sides that are multiples of 4"),
        ((0, 16, 3), r"image_shape=\(0, 16, 3\): expected sides that are multiples of 4"),
        ((16, 16, 1), r"image_shape=\(16, 16, 1\): expected 3 channels"),
        ((16,), r"image_shape=\(16,\): expected three numbers"),
    ],
)
def test_unsuitable_images_are_errors(shape, message):
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        codec().data_shape(shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling_factor": 0.0}, "scaling_factor=0.0"),
        ({"shift_factor": float("nan")}, "shift_factor=nan"),
        ({"posterior": "mean"}, "posterior='mean': expected one of 'mode', 'sample'"),
        ({"slices": 0}, "slices=0"),
        ({"latents_mean": (0.0, 1.0)}, "latents_std=None: expected latents_mean and latents_std"),
        ({"latents_mean": (0.0,), "latents_std": (1.0,)}, r"latents_mean=\(0.0,\): expected a number for each of 2"),
        ({"latents_mean": (0.0, 1.0), "latents_std": (1.0, 0.0)}, r"latents_std=\(1.0, 0.0\): expected numbers > 0"),
        (
            {"latents_mean": (0.0, 1.0), "latents_std": (1.0, 1.0), "shift_factor": 0.1},
            "shift_factor=0.1: expected either shift_factor or latents_mean",
        ),
        ({"tiles": Tiles(18)}, "expected a tile and an overlap of whole latents, which are 4 pixels wide"),
        ({"tiles": Tiles(24)}, "got tiles of 24 that share 6 pixels"),
    ],
)  # fmt: skip
def test_impossible_codecs(options, message):
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        codec(**options)


def test_impossible_tiles():
    with pytest.raises(UserError, match="size=0"):
        Tiles(0)
    with pytest.raises(UserError, match=r"overlap=1.0: expected a number in \[0, 1\)"):
        Tiles(overlap=1.0)


def test_weights_of_another_network_are_named():
    made = Latent(NETWORK.clone(use_quant_conv=False), WEIGHTS)
    with pytest.raises(
        UserError, match=r"codec.weights=quant_conv/bias: expected no such parameter, got \[4\]"
    ):
        encode(made, params=frozen())
    with pytest.raises(UserError, match=r"weights=decoder/stem/kernel.*\(1 parameters differ\)"):
        decode(Latent(NETWORKS["tiny"].clone(latent_channels=3), WEIGHTS), draw(1, 4, 4, 3), _without_stem())


def _without_stem():
    params = random_params(NETWORKS["tiny"].clone(latent_channels=3))
    decoder = {**params["decoder"], "stem": {"bias": params["decoder"]["stem"]["bias"]}}
    return {"autoencoder": {**params, "decoder": decoder}}


class Mixer(nn.Module):
    """A 1 x 1 convolution over latents."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return nn.Dense(x.shape[-1], name="mix")(x)


@pytest.mark.slow
def test_a_denoiser_is_trained_on_the_latents_of_a_frozen_autoencoder(tmp_path):
    """The autoencoder is in no checkpoint, receives no update, and decodes the samples."""
    file = tmp_path / "autoencoder.safetensors"
    save_file(flatten_dict(frozen()["autoencoder"], sep="/"), file)
    made = Latent(NETWORK, FileWeights(str(file)))
    denoiser = Denoiser(Mixer(), Conditioner(Label()), VarianceExploding(0.01, 5.0), Edm())
    experiment = Experiment(
        task=DenoisingTask(denoiser, LogNormalSigma(), (16, 24, 3), codec=made),
        optimizer=AdamW(0.01), ema=Ema(0.5), data=Pipeline(Arrays(image=np.tile(IMAGES, (4, 1, 1, 1)))),
        sampling=Recipe(Ddim(), Karras(0.02, 5.0), ClassifierFree(), 2),
        steps=2, batch_size=8, checkpoint_every=2, sample_every=0,
    )  # fmt: skip
    generator = train(experiment, str(tmp_path / "run"))
    assert set(paths(generator.params)) == {"network/mix/kernel", "network/mix/bias"}
    samples = generator(2)
    assert samples.shape == (2, 16, 24, 3)
    assert samples.dtype == np.uint8
    (stored,) = (tmp_path / "run" / "checkpoints" / "2").rglob("_METADATA")
    assert "middle_attention" not in stored.read_text()
