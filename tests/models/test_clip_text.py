"""CLIP's text encoder against transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.text import Text
from jaxdiff.config import build, describe
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.errors import UserError
from jaxdiff.interop.text_encoders import clip_encoder, encoder_params
from jaxdiff.models.clip_text import ClipTextEncoder
from tests.text_models import IDS, QUICK, assert_close, clip_peer, numbers, run

SMALL = ClipTextEncoder(width=32, layers=3, heads=4, vocabulary=99, length=12, end=97)


def ours(peer, **options):
    encoder = clip_encoder(numbers(peer), peer.config.to_dict())
    return encoder.clone(**options), encoder_params(encoder, numbers(peer))


def theirs(peer, ids=IDS):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return peer(torch.tensor(ids), output_hidden_states=True)


@pytest.mark.spread(2)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("projects", [True, False])
def test_tokens_and_pooled_vector_are_transformers(activation, projects):
    peer = clip_peer(activation, projects)
    encoder, params = ours(peer, pooled=True)
    found, expected = run(encoder, params, IDS), theirs(peer)
    assert_close(found.tokens.features, expected.last_hidden_state)
    assert_close(found.vector, expected.text_embeds if projects else expected.pooler_output)
    assert np.asarray(found.tokens.mask).all()  # Stable Diffusion attends to padding


@pytest.mark.spread(2)
@pytest.mark.parametrize("layer", [-1, -2, -3, -4])
def test_every_layer_with_and_without_the_final_norm(layer):
    """SDXL reads layer -2 without the norm. A clip skip of k reads layer -(k + 1) with it."""
    torch = pytest.importorskip("torch")
    peer = clip_peer(projects=False)
    expected = theirs(peer).hidden_states[layer]
    encoder, params = ours(peer, layer=layer, final_norm=False)
    found = run(encoder, params, IDS)
    assert_close(found.tokens.features, expected)
    assert found.vector is None
    with torch.no_grad():
        normed = peer.final_layer_norm(expected)
    assert_close(run(encoder.clone(final_norm=True), params, IDS).tokens.features, normed)


def test_the_pooled_vector_is_of_the_last_layer_whichever_layer_is_read():
    encoder, params = ours(clip_peer(), pooled=True)
    other = encoder.clone(layer=-2, final_norm=False)
    one, two = run(encoder, params, IDS), run(other, params, IDS)
    np.testing.assert_array_equal(one.vector, two.vector)
    assert not np.allclose(one.tokens.features, two.tokens.features, atol=0.1)


def test_an_old_config_pools_at_the_largest_id_and_a_new_one_at_the_end():
    old, new = clip_peer(projects=False, eos_token_id=2), clip_peer(projects=False)
    for peer, positions in ((old, [3, 1, 10]), (new, [3, 4, 11])):
        encoder, params = ours(peer, pooled=True)
        found = run(encoder, params, IDS)
        assert_close(found.vector, theirs(peer).pooler_output)
        np.testing.assert_array_equal(found.vector, found.tokens.features[np.arange(3), positions])


def test_short_texts_need_no_padding():
    peer = clip_peer()
    encoder, params = ours(peer)
    found = run(encoder, params, IDS[:, :5])
    assert_close(found.tokens.features, theirs(peer, IDS[:, :5]).last_hidden_state)


def test_a_position_does_not_see_later_ones():
    encoder, params = ours(clip_peer())
    ids = IDS.copy()
    ids[:, 6:] = 33
    one, other = (np.asarray(run(encoder, params, given).tokens.features) for given in (IDS, ids))
    np.testing.assert_array_equal(one[:, :6], other[:, :6])
    assert (np.abs(one[:, 6:] - other[:, 6:]).max(-1) > 0.1).all()


def test_windows_are_encoded_one_by_one_and_the_first_is_pooled():
    encoder, params = ours(clip_peer(), pooled=True)
    long = np.concatenate([IDS, IDS[::-1]], axis=1)
    found, alone = run(encoder, params, long), run(encoder, params, IDS)
    assert found.tokens.features.shape == (3, 24, 32)
    assert found.tokens.mask.shape == (3, 24)
    np.testing.assert_allclose(found.tokens.features[:, :12], alone.tokens.features, atol=1e-5)
    np.testing.assert_allclose(found.tokens.features[:, 12:], alone.tokens.features[::-1], atol=1e-5)
    np.testing.assert_allclose(found.vector, alone.vector, atol=1e-5)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"width": 768, "layers": 12, "heads": 12}, 123_060_480),
        ({"width": 1024, "layers": 23, "heads": 16, "activation": "gelu"}, 340_387_840),
        ({"width": 1280, "layers": 32, "heads": 20, "activation": "gelu", "projection": 1280}, 694_659_840),
    ],
)
def test_published_sizes(options, count):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        hidden_size=options["width"],
        intermediate_size=4 * options["width"],
        num_hidden_layers=options["layers"],
        num_attention_heads=options["heads"],
        projection_dim=options.get("projection"),
    )
    projects = "projection" in options
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    with torch.device("meta"):
        peer = kind(config)
    ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    shapes = jax.eval_shape(ClipTextEncoder(**options).init, jax.random.key(0), ids)
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert found == sum(value.numel() for value in peer.parameters()) == count


def test_half_precision_keeps_parameters_and_tokens_in_float32():
    encoder, params = ours(clip_peer(), pooled=True)
    half = encoder.clone(dtype="bfloat16")
    shapes = jax.eval_shape(half.init, jax.random.key(0), IDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    one, other = run(half, params, IDS).tokens.features, run(encoder, params, IDS).tokens.features
    assert one.dtype == np.float32
    assert 1e-4 < np.abs(one - other).mean() < 0.05
    products = re.findall(r"dot_general .*: \((.*)\) ->", run.lower(half, params, IDS).as_text())
    assert len(products) == 3 * 6 + 1  # a block has those of four layers and two of attention; the projection
    assert all(operands.count("xbf16>") == 2 for operands in products)


def test_an_id_out_of_range_becomes_nan():
    encoder, params = ours(clip_peer())
    for wrong in (-1, 99):
        assert np.isnan(run(encoder, params, np.where(IDS == 5, wrong, IDS)).tokens.features[0, 1]).all()


@pytest.mark.slow
def test_it_is_an_encoder_of_the_text_condition():
    part = Text(ByteTokenizer(12), SMALL.clone(vocabulary=259, end=1), null="empty")
    ids, drop = jnp.asarray(part.read(["a cat", "", "a dog"])), jnp.asarray([True, False, False])
    params = jax.jit(part.init, compiler_options=QUICK)(jax.random.key(0), ids, drop)
    found = part.apply(params, ids, drop)
    assert found.vector is None
    np.testing.assert_allclose(found.tokens.features[0], found.tokens.features[1], atol=1e-5)
    assert np.abs(found.tokens.features[2] - found.tokens.features[1]).max() > 1e-3


def test_it_is_a_plain_block():
    assert build(describe(SMALL)) == SMALL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "width=32: expected a multiple of heads=5"),
        ({"activation": "relu"}, "activation='relu': expected one of 'quick_gelu', 'gelu'"),
        ({"layer": 0}, r"layer=0: expected a number in \[-4, -1\]"),
        ({"layer": -5}, "layer=-5"),
        ({"layers": 0}, "layers=0: expected a number > 0"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_impossible_encoders_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SMALL.clone(**options)


def test_texts_longer_than_the_window_are_refused():
    with pytest.raises(UserError, match="ids=13: expected windows of 12 ids"):
        jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 13), int))
