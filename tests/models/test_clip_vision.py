"""CLIP's image encoder against transformers' `CLIPVisionModelWithProjection` and `CLIPImageProcessor`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe
from jaxdiff.errors import UserError
from jaxdiff.interop.clip_vision import vision_encoder, vision_params, vision_tensors
from jaxdiff.models.clip_vision import MEAN, STD, ClipVisionEncoder, clip_pixels
from tests.text_models import QUICK, assert_close, numbers, randomise, run

SMALL = {
    "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 12,
    "patch_size": 4, "projection_dim": 20,
}  # fmt: skip
PIXELS = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 12, 3), np.float32))


@functools.cache
def a_peer(activation="quick_gelu"):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(**SMALL, hidden_act=activation)
    return randomise(transformers.CLIPVisionModelWithProjection(config))


def ours(peer):
    encoder = vision_encoder(numbers(peer), peer.config.to_dict())
    return encoder, vision_params(encoder, numbers(peer))


@pytest.mark.spread(1)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_vector_and_the_states_are_transformers(activation):
    torch = pytest.importorskip("torch")
    peer = a_peer(activation)
    with torch.no_grad():
        given = torch.tensor(np.asarray(PIXELS).transpose(0, 3, 1, 2))
        expected = peer(given, output_hidden_states=True)
    encoder, params = ours(peer)
    for layer in (-1, -2, -4):
        found = run(encoder.clone(layer=layer), params, PIXELS)
        assert_close(found.tokens.features, expected.hidden_states[layer])
        assert_close(found.vector, expected.image_embeds)


def test_files_come_back_bit_for_bit():
    theirs = numbers(a_peer())
    encoder, params = ours(a_peer())
    back = vision_tensors(encoder, params)
    assert back.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(back[name], value)
    whole = theirs | {"vision_model.embeddings.position_ids": np.arange(10), "text_model.x": np.zeros(1)}
    bare = {name.removeprefix("vision_model."): value for name, value in theirs.items()}
    for file in (whole, bare):
        assert vision_encoder(file, SMALL) == encoder
        jax.tree.map(np.testing.assert_array_equal, vision_params(encoder, file), params)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"width": 1280, "layers": 32, "heads": 16, "activation": "gelu", "projection": 1024}, 632_076_800),
        (
            {
                "width": 1664,
                "layers": 48,
                "heads": 16,
                "hidden": 8192,
                "activation": "gelu",
                "projection": 1280,
            },
            None,
        ),
        ({"width": 1024, "layers": 24, "heads": 16}, None),
    ],
)
def test_published_sizes(options, count):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    encoder = ClipVisionEncoder(**options)
    config = transformers.CLIPVisionConfig(
        hidden_size=encoder.width, intermediate_size=encoder.hidden or 4 * encoder.width, patch_size=14,
        num_hidden_layers=encoder.layers, num_attention_heads=encoder.heads, projection_dim=encoder.projection,
    )  # fmt: skip
    with torch.device("meta"):
        peer = transformers.CLIPVisionModelWithProjection(config)
    expected = {name: value.shape for name, value in peer.state_dict().items()}
    assert count in (None, sum(value.numel() for value in peer.parameters()))
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in expected.items()}
    assert vision_encoder(tensors) == encoder.clone(hidden=encoder.hidden or 4 * encoder.width)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(map(np.prod, expected.values()))


@pytest.mark.spread(2)
@pytest.mark.parametrize("size", [(300, 400), (97, 224), (400, 300), (224, 224), (40, 30)])
def test_images_are_prepared_as_clip_s_processor_does(size):
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (2, 9, 8, 3)).astype(np.float32)
    image = np.asarray(jax.image.resize(coarse, (2, *size, 3), "bilinear")) + 20 * rng.standard_normal(
        (2, *size, 3)
    )
    image = np.clip(image, 0, 255).astype(np.uint8)
    processor = transformers.CLIPImageProcessor()
    expected = processor(list(image), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    floats = jnp.asarray(image, jnp.float32) / 255
    found = np.asarray(jax.jit(clip_pixels, compiler_options=QUICK)(floats))
    levels = 255 * np.array(STD)
    assert found.shape == expected.shape
    assert np.abs((found - expected) * levels).max() <= 1.01
    assert np.abs((found - expected) * levels).mean() < 0.2
    white = clip_pixels(jnp.ones((1, 30, 40, 3)))
    np.testing.assert_allclose(white[0, 0, 0], (1 - np.array(MEAN)) / np.array(STD), rtol=1e-6)


def test_it_is_a_plain_block_and_computes_in_half_precision():
    encoder, params = ours(a_peer())
    assert build(describe(encoder)) == encoder
    half = encoder.clone(dtype="bfloat16")
    one, other = run(half, params, PIXELS), run(encoder, params, PIXELS)
    assert one.tokens.features.dtype == np.float32
    assert 1e-4 < np.abs(one.tokens.features - other.tokens.features).mean() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "width=32: expected a multiple of heads=5"),
        ({"image_size": 13}, "image_size=13: expected a multiple of patch=4"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"layer": 0}, r"layer=0: expected a number in \[-4, -1\]"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_impossible_encoders_are_refused(options, message):
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        ours(a_peer())[0].clone(**options)


def test_other_images_and_files_are_refused():
    encoder, params = ours(a_peer())
    with pytest.raises(
        UserError, match=r"pixels=\(8, 12\): expected images of 12 x 12.*Fix: use clip_pixels"
    ):
        run(encoder, params, PIXELS[:, :8])
    with pytest.raises(UserError, match=r"tensors: expected those of CLIP's image encoder.*got text_model.x"):
        vision_encoder({"text_model.x": np.zeros(1)})
    less = {name: value for name, value in numbers(a_peer()).items() if "post_layernorm.bias" not in name}
    with pytest.raises(UserError, match=r"missing +post_layernorm.bias"):
        vision_params(encoder, less)
