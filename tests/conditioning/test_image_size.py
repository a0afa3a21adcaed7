"""Sizes of images as conditions: SDXL's vector against diffusers, and defaults that follow the size of the images."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous, ImageSize
from jaxdiff.conditioning.vector import VectorMlp
from jaxdiff.config import build, describe
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Data
from jaxdiff.process.time_sampling import Uniform
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.step import Context
from tests.generation.test_inputs import Sum, a_generator, constant
from tests.text_models import assert_close, randomise

POOLED, WIDTH = 20, 16
SIZES = {"original_size": (1024, 576), "crop": (3, 40), "target_size": (768, 640)}


class NoNoise(nn.Module):
    """A vector of zeros as wide as the network's."""

    def __call__(self, noise_label):
        return Embeddings(vector=jnp.zeros((noise_label.shape[0], WIDTH)))


def peer(numbers):
    """A U-Net of SDXL, for as many numbers about an image."""
    diffusers = pytest.importorskip("diffusers")
    blocks = {
        "block_out_channels": (4, 8),
        "norm_num_groups": 2,
        "layers_per_block": 1,
        "attention_head_dim": 2,
    }
    blocks |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 8}
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    return randomise(
        diffusers.UNet2DConditionModel(
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            projection_class_embeddings_input_dim=POOLED + 256 * numbers, **blocks, **added,
        )
    )  # fmt: skip


def vector_of(unet, pooled, time_ids):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        added = {"text_embeds": torch.tensor(pooled), "time_ids": time_ids.repeat(len(pooled), 1)}
        return unet.get_aug_embed(torch.zeros(len(pooled), 16), None, added).numpy()


def vector(unet, conditions, fields, drop=False):
    """The vector of our conditioner with the parameters of theirs."""
    order = ("text", *(name for name in fields if name != "text"))
    conditioner = Conditioner(NoNoise(), conditions, order, VectorMlp(WIDTH))
    layers = (unet.add_embedding.linear_1, unet.add_embedding.linear_2)
    params = {
        f"dense_{i}": {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}
        for i, layer in enumerate(layers)
    }
    batch = len(fields["text"])
    rows = {name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch, *np.shape(value)))
            for name, value in fields.items() if name != "text"}  # fmt: skip
    drops = {name: jnp.full(batch, drop) for name in fields}
    given = {"text": jnp.asarray(fields["text"]), **rows}
    return conditioner.apply(
        {"params": {"mapping": jax.tree.map(jnp.asarray, params)}}, jnp.zeros(batch), given, drops
    ).vector


def pipeline(name, unet, **config):
    """As much of a pipeline as its sizes need."""
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, name), types.SimpleNamespace(unet=unet, config=types.SimpleNamespace(**config))


TEXT = Continuous(POOLED, None, null="none")
CROP = Continuous(2, None, 128, default=(0.0, 0.0), null="none")
VECTORS = np.random.default_rng(0).standard_normal((3, POOLED), np.float32)


def test_pooled_text_and_sizes_are_sdxls():
    torch = pytest.importorskip("torch")
    unet = peer(6)
    kind, part = pipeline("StableDiffusionXLPipeline", unet)
    ids = kind._get_add_time_ids(part, *SIZES.values(), torch.float32, POOLED)
    conditions = {"text": TEXT, "original_size": ImageSize(), "crop": CROP, "target_size": ImageSize()}
    for drop in (False, True):  # guidance shows sizes in both branches
        found = vector(unet, conditions, {"text": VECTORS, **SIZES}, drop)
        assert_close(found, vector_of(unet, VECTORS, ids))


def test_both_aesthetic_scores_are_those_of_sdxls_refiner():
    torch = pytest.importorskip("torch")
    unet = peer(5)
    kind, part = pipeline("StableDiffusionXLImg2ImgPipeline", unet, requires_aesthetics_score=True)
    sizes = (SIZES["original_size"], SIZES["crop"], SIZES["target_size"])
    ids, negative = kind._get_add_time_ids(part, *sizes, 6.0, 2.5, *sizes, torch.float32, POOLED)
    score = Continuous(None, None, 128, default=6.0, null="value", null_value=2.5)
    conditions = {"text": TEXT, "original_size": ImageSize(), "crop": CROP, "aesthetic_score": score}
    given = {
        "text": VECTORS,
        **{name: SIZES[name] for name in ("original_size", "crop")},
        "aesthetic_score": 6.0,
    }
    assert_close(vector(unet, conditions, given), vector_of(unet, VECTORS, ids))
    dropped = vector(unet, conditions, given, drop=True)
    assert_close(dropped, vector_of(unet, VECTORS, negative))
    assert np.abs(dropped - vector(unet, conditions, given)).max() > 0.1


SMALL = {"size": ImageSize(width=1, frequencies=0, scale=0.01), "aspect": Continuous(None, 1, default=0.0)}
WEIGHTS = {"size": {"kernel": [[3.0], [1.0]]}, "aspect": {"kernel": [[1.0]]}}


def level(height, width):
    return 0.01 * (3 * height + width)


def test_the_default_is_the_size_of_the_images_that_are_generated():
    generator = a_generator(SMALL, WEIGHTS, (4, 6, 1))
    np.testing.assert_array_equal(generator(), constant([level(4, 6)], (4, 6, 1)))
    for height, width in ((2, 5), (8, 4)):
        found = generator(image_size=(height, width))
        np.testing.assert_array_equal(found, constant([level(height, width)], (height, width, 1)))
    there_and_back = generator.of_size(8, 8).of_size(3, 9)
    np.testing.assert_array_equal(there_and_back(), constant([level(3, 9)], (3, 9, 1)))
    given = generator(size=[(10, 2), (1, 0)], image_size=(8, 4))
    np.testing.assert_array_equal(given, constant([level(10, 2), level(1, 0)], (8, 4, 1)))


def test_guidance_shows_the_size_in_both_branches_unless_a_negative_one_is_given():
    generator = a_generator(SMALL, WEIGHTS, (4, 6, 1), scale=2.0)
    np.testing.assert_array_equal(generator(), constant([level(4, 6)], (4, 6, 1)))
    found = generator(negative={"size": (1, 10)})
    np.testing.assert_array_equal(found, constant([2 * level(4, 6) - level(1, 10)], (4, 6, 1)))


def test_a_null_value_is_guided_away_from(caplog):
    score = Continuous(None, 1, scale=0.1, default=6.0, null="value", null_value=2.5)
    generator = a_generator({"score": score}, {"score": {"kernel": [[1.0]]}}, scale=1.5)
    np.testing.assert_array_equal(generator(), constant([1.5 * 0.6 - 0.5 * 0.25]))
    np.testing.assert_array_equal(generator(score=[0.0, 4.0]), constant([-0.125, 0.6 - 0.125]))
    np.testing.assert_array_equal(generator(negative={"score": 1.0}), constant([0.9 - 0.05]))
    assert not caplog.records  # it needs no training of its own


def test_images_of_training_have_their_own_size_by_default():
    denoiser = Denoiser(Sum(), Conditioner(NoNoise(), SMALL), RectifiedFlow(), Data())
    task = DenoisingTask(denoiser, Uniform(), (4, 6, 1))
    images = np.zeros((3, 4, 6, 1), np.uint8)
    context = Context(jnp.int32(0), {}, {}, task.init_task_state())
    drawn = task.draw({"image": jnp.asarray(images)}, context, jax.random.key(0))
    np.testing.assert_array_equal(drawn["fields"]["size"], [[4, 6]] * 3)
    task.check({"image": images[0]}, None)
    given = {"image": jnp.asarray(images), "size": jnp.full((3, 2), 9.0)}
    np.testing.assert_array_equal(task.draw(given, context, jax.random.key(0))["fields"]["size"], 9)
    assert build(describe(task)) == task


def test_a_size_is_a_plain_block():
    part = ImageSize(scale=2.0)
    assert part.for_images((5, 7, 3), (5, 7, 3)).default == (5, 7)
    assert part.for_images((5, 7, 3), (5, 7, 3)).for_images((8, 9, 3), (4, 4, 4)).default == (8, 9)
    assert build(describe(part.for_images((5, 7, 3), (5, 7, 3)))) == part
    assert "default" not in describe(part)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null": "value"}, "null_value=None: expected numbers with null='value' only"),
        ({"null_value": 1.0}, "null_value=1.0: expected numbers with null='value' only"),
        (
            {"null": "value", "null_value": (1.0, 2.0, 3.0)},
            r"null_value=\(1.0, 2.0, 3.0\): expected 2 numbers",
        ),
        ({"null": "empty"}, "null='empty': expected one of learned, zero, none, value"),
    ],
)
def test_impossible_nulls_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Continuous(2, 3, **options)
