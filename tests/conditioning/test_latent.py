"""Conditions of latent models against the pipelines of diffusers: masked images, images to edit, images to enlarge."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.codecs.encoder import Encoder
from jaxdiff.codecs.latent import Latent, parameter_shapes
from jaxdiff.codecs.pixels import Pixels
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.latent import LatentImage, MaskedImage
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.vector import NoiseLevel, StepTable
from jaxdiff.config import describe
from jaxdiff.errors import UserError
from jaxdiff.interop.autoencoders import entries
from jaxdiff.interop.mapping import to_params
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.table import CosineBetas, LinearBetas, ScaledLinearBetas, Table
from jaxdiff.runs.weights import FileWeights
from tests.models.autoencoders import NETWORKS, close, numbers, peer

NETWORK = NETWORKS["sd"]  # four pixels along the side of a latent
CODEC = Latent(NETWORK, FileWeights("autoencoder.safetensors"), scaling_factor=0.3)
RNG = np.random.default_rng(0)
PHOTOS = RNG.integers(0, 256, (2, 16, 24, 3), np.uint8)
MASK = RNG.choice(np.uint8([0, 1, 127, 128, 254, 255]), (16, 24))
SOURCE, MASKED = LatentImage(factor=1 / 4), MaskedImage(factor=4)


@functools.cache
def certain_peer():
    """diffusers' autoencoder with random parameters and a posterior of hardly any variance, so that draws are equal."""
    model = copy.deepcopy(peer("sd", scaling_factor=0.3))
    layer = model.quant_conv
    layer.weight.data[NETWORK.latent_channels :] = 0
    layer.bias.data[NETWORK.latent_channels :] = -100
    return model


@functools.cache
def frozen(certain=False):
    model = certain_peer() if certain else peer("sd", scaling_factor=0.3)
    tree = to_params(entries(NETWORK), numbers(model), parameter_shapes(NETWORK))
    return {"autoencoder": jax.tree.map(jnp.asarray, tree)}


def encoded(part, values, codec=CODEC, certain=False, seed=0):
    """What the network is shown of values."""
    model, keys = (
        Conditioner(NoiseLevel(8), {"image": part}),
        jax.random.split(jax.random.key(seed), len(values)),
    )
    run = jax.jit(lambda tree, values: model.draw({"image": values}, keys, False, Encoder(codec, tree)))
    drawn = run(frozen(certain), jnp.asarray(values))["image"]
    return part.apply({}, drawn, jnp.zeros(len(values), bool)).spatial


def last(tensor):
    """Channels last."""
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def pipeline(name, vae, **parts):
    diffusers = pytest.importorskip("diffusers")
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, name)(vae, *[None] * 4, **optional | parts)


@pytest.mark.slow
def test_mask_and_masked_image_are_those_of_the_inpainting_pipeline():
    torch = pytest.importorskip("torch")
    theirs = pipeline("StableDiffusionInpaintPipeline", certain_peer())
    image = theirs.image_processor.preprocess(Image.fromarray(PHOTOS[0]))
    mask = theirs.mask_processor.preprocess(Image.fromarray(MASK))
    with torch.no_grad():
        expected = theirs.prepare_mask_latents(
            mask, image * (mask < 0.5), 1, 16, 24, torch.float32, "cpu", None, False
        )
    values = MASKED.masked(PHOTOS[0], MASK[..., None] >= 128)
    found = encoded(MASKED, values[None], certain=True)
    np.testing.assert_array_equal(found[..., :1], last(expected[0]))
    close(found[..., 1:], last(expected[1]))


@pytest.mark.slow
def test_latents_of_a_masked_image_are_drawn_and_scaled_as_the_data_are():
    values = np.repeat(MASKED.masked(PHOTOS[:1], MASK[None, ..., None] >= 128), 64, axis=0)
    found = np.asarray(encoded(MASKED, values)[..., 1:])
    filled = jnp.asarray(np.where(values[:1, ..., -1:] == 1, values[:1, ..., :-1], 0.0))
    moments = NETWORK.apply({"params": frozen()["autoencoder"]}, filled, method="moments")
    mean, log_variance = NETWORK.posterior(moments)
    drawn = (found - 0.3 * np.asarray(mean)) / (0.3 * np.exp(np.asarray(log_variance) / 2))
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(drawn.std() - 1) < 4 / np.sqrt(2 * drawn.size)
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 4 / np.sqrt(drawn.size)
    other = encoded(MASKED, values[:2], seed=1)[..., 1:]
    assert np.abs(other - found[:2]).max() > 0.01
    np.testing.assert_array_equal(found[:2], encoded(MASKED, values)[:2, ..., 1:])


@pytest.mark.slow
def test_colours_of_unknown_pixels_mean_nothing():
    values = MASKED.masked(PHOTOS[:1], MASK[None, ..., None] >= 128)
    painted = np.where(values[..., -1:] == 1, values, np.float32([0.4, -0.9, 0.1, -1.0]))
    assert np.abs(painted - values).max() > 0.8
    np.testing.assert_array_equal(encoded(MASKED, painted), encoded(MASKED, values))
    grey = encoded(MASKED.clone(fill=0.5), painted)
    assert np.abs(grey - encoded(MASKED, values))[..., 1:].max() > 0.01


@pytest.mark.slow
def test_latents_of_an_image_to_edit_are_those_of_instruct_pix2pix():
    torch = pytest.importorskip("torch")
    theirs = pipeline("StableDiffusionInstructPix2PixPipeline", peer("sd", scaling_factor=0.3))
    image = torch.cat([theirs.image_processor.preprocess(Image.fromarray(photo)) for photo in PHOTOS])
    with torch.no_grad():
        expected = theirs.prepare_image_latents(image, 2, 1, torch.float32, "cpu", True)
    both, _, without = (last(each) for each in expected.chunk(3))
    found = encoded(SOURCE, PHOTOS)
    close(found, both)
    shifted = Latent(NETWORK, CODEC.weights, scaling_factor=0.7, shift_factor=0.2)
    np.testing.assert_array_equal(
        encoded(SOURCE, PHOTOS, shifted, seed=3), found
    )  # of no scale, and never drawn
    dropped = SOURCE.apply({}, found, jnp.array([False, True])).spatial
    np.testing.assert_array_equal(dropped[0], found[0])
    np.testing.assert_array_equal(dropped[1], without[1])


def upscaled(betas, **options):
    process = VariancePreserving(Table(betas))
    return NoiseAugmented(
        ImageCondition(3), StepTable(1000, 8), process, max_level=0.35, label=StepIndex(1000), **options
    )


def drawn(part, values):
    model = Conditioner(NoiseLevel(8), {"image": part})
    return model.draw({"image": values}, jax.random.split(jax.random.key(0), len(PHOTOS)), train=False)[
        "image"
    ]


@pytest.mark.spread(5)
@pytest.mark.parametrize("step", [0, 20, 133, 349])
@pytest.mark.parametrize(
    ("betas", "schedule"),
    [
        (LinearBetas(), "linear"),
        (ScaledLinearBetas(1e-4, 0.02), "scaled_linear"),
        (CosineBetas(), "squaredcos_cap_v2"),
    ],
)
def test_an_image_to_enlarge_is_noised_as_by_the_upscaler(step, betas, schedule):
    """Level (i + 1) / 1000 is the noise level i of the pipeline."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=schedule)
    part, images = upscaled(betas), jnp.asarray(PHOTOS)
    found = drawn(part, {"value": images, "level": jnp.full(2, (step + 1) / 1000)})
    clean = drawn(part, {"value": images, "level": jnp.zeros(2)})["value"]
    np.testing.assert_allclose(clean, PHOTOS / 127.5 - 1, atol=1e-6)
    alpha_squared = theirs.alphas_cumprod[step].numpy().astype(float)
    noise = (np.asarray(found["value"], float) - np.sqrt(alpha_squared) * clean) / np.sqrt(1 - alpha_squared)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size) + 0.01 * (step == 0)
    expected = theirs.add_noise(
        *(torch.tensor(np.asarray(each)) for each in (clean, noise)), torch.tensor([step])
    )
    np.testing.assert_allclose(found["value"], expected, atol=1e-5)


@pytest.mark.slow
def test_the_level_of_the_noise_is_a_row_of_the_table():
    part, table = upscaled(LinearBetas(), level=0.021), RNG.standard_normal((1000, 8), np.float32)
    params = {"params": {"noise": {"table": jnp.asarray(table)}}}
    values, drop = drawn(part, jnp.asarray(PHOTOS)), jnp.array([False, True])
    found = part.apply(params, values, drop)
    np.testing.assert_array_equal(
        found.vector, table[[20, 20]]
    )  # guidance shows image and level in both branches
    np.testing.assert_array_equal(found.spatial, values["value"])
    for step in range(0, 350):
        level = jnp.full(2, np.float32((step + 1) / 1000))
        vector = part.apply(params, {**values, "level": level}, drop).vector
        np.testing.assert_array_equal(vector[0], table[step])
    for level, row in ((0.0, 0), (0.0004, 0), (0.0016, 1)):
        vector = part.apply(params, {**values, "level": jnp.full(2, level)}, drop).vector
        np.testing.assert_array_equal(vector[0], table[row])
    beyond = part.apply(params, {**values, "level": jnp.full(2, 1.01)}, drop).vector
    assert np.isnan(beyond).all()


NOISY = NoiseAugmented(SOURCE, NoiseLevel(8), VariancePreserving(Table(LinearBetas())))


def test_examples_have_the_shapes_of_real_values():
    for part, shown in ((SOURCE, 4), (MASKED, 5), (NOISY, 4)):
        model = Conditioner(NoiseLevel(8), {"image": part})
        stored = model.stored_example(2, (4, 6, 4))
        keys, noisy = jax.random.split(jax.random.key(0), 2), isinstance(part, NoiseAugmented)
        draw = functools.partial(model.draw, train=False, encoder=Encoder(CODEC, frozen()))
        real = jax.eval_shape(draw, stored, keys)["image"]
        example = model.example(2, (4, 6, 4))["image"]
        assert jax.tree.map(jnp.shape, example) == jax.tree.map(jnp.shape, real)
        assert (example["value"] if noisy else example).shape == (2, 4, 6, shown)
        assert part.image_shape((4, 6, 4))[:2] == (16, 24)


def test_the_codec_sets_the_factor():
    for part in (LatentImage(), MaskedImage(), NoiseAugmented(LatentImage(), NOISY.noise, NOISY.process)):
        fitted = part.for_images((16, 24, 3), (4, 6, 4))
        assert fitted.image_shape((4, 6, 4))[:2] == (16, 24)
        assert describe(fitted) == describe(part)


def test_latents_need_an_autoencoder():
    with pytest.raises(UserError, match=r"config\.task\.codec=Pixels: expected Latent"):
        Encoder(Pixels(), {}).latents(jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(UserError, match="data_shape=None: expected the shape of the data"):
        MASKED.example(1)
    with pytest.raises(UserError, match="factor=0: expected a number > 0"):
        MaskedImage(factor=0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((16, 24, 1), np.uint8), r"mask='uint8\[16, 24, 1\]': expected a bool for each pixel"),
        (np.zeros((16, 20, 1), bool), r"mask='bool\[16, 20, 1\]'"),
        (np.zeros((16, 24, 3), bool), r"mask='bool\[16, 24, 3\]'"),
    ],
)
def test_masks_of_other_shapes_are_refused(mask, message):
    with pytest.raises(UserError, match=message):
        MASKED.masked(PHOTOS, mask)
