"""T5's encoder against transformers' `T5EncoderModel`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe
from jaxdiff.errors import UserError
from jaxdiff.interop.text_encoders import encoder_params, t5_encoder
from jaxdiff.models.t5_encoder import T5Encoder, relative_buckets
from tests.text_models import assert_close, numbers, run, t5_peer

SMALL = T5Encoder(width=24, layers=3, heads=4, head_dim=8, hidden=40, vocabulary=99)
# Texts of different lengths, padded with 0; longer than the distance from which all are one class.
SIZES = np.array([5, 26, 1])
IDS = np.random.default_rng(0).integers(2, 99, (3, 26), np.int32)
IDS[np.arange(26)[None] >= SIZES[:, None]] = 0


def ours(peer, **options):
    encoder = t5_encoder(numbers(peer), peer.config.to_dict())
    return encoder.clone(**options), encoder_params(encoder, numbers(peer))


def theirs(peer, ids, mask):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return peer(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()


@pytest.mark.parametrize("kind", ["gated-gelu", "relu"])
def test_tokens_are_transformers(kind):
    peer = t5_peer(feed_forward_proj=kind)
    encoder, params = ours(peer)
    assert (encoder.gated, encoder.activation) == {"gated-gelu": (True, "gelu_new"), "relu": (False, "relu")}[
        kind
    ]
    found, mask = run(encoder, params, IDS).tokens, IDS != 0
    np.testing.assert_array_equal(found.mask, mask)
    expected = theirs(peer, IDS, mask.astype(int))
    assert_close(found.features[mask], expected[mask])


def test_padding_is_seen_if_it_is_not_masked():
    peer = t5_peer()
    encoder, params = ours(peer, masked=False)
    found = run(encoder, params, IDS).tokens
    assert np.asarray(found.mask).all()
    assert_close(found.features, theirs(peer, IDS, np.ones_like(IDS)))
    hidden = run(encoder.clone(masked=True), params, IDS).tokens
    assert np.abs(hidden.features[0, :5] - found.features[0, :5]).max() > 0.01


def test_padding_never_leaks():
    encoder, params = ours(t5_peer())
    full = run(encoder, params, IDS).tokens.features
    short = run(encoder, params, IDS[:, :5]).tokens.features
    np.testing.assert_allclose(full[0, :5], short[0], atol=1e-5)


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (64, 256)])
def test_distances_have_the_classes_of_transformers(buckets, max_distance):
    """At every distance: the logarithm of a power of two may round to the class before."""
    torch = pytest.importorskip("torch")
    attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    offset = torch.arange(600)[None, :] - torch.arange(600)[:, None]
    expected = attention._relative_position_bucket(offset, True, buckets, max_distance)
    np.testing.assert_array_equal(relative_buckets(600, buckets, max_distance), expected)


def test_published_sizes():
    """T5-XXL 1.1's encoder, as Imagen and its followers use it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    with torch.device("meta"):
        peer = transformers.T5EncoderModel(transformers.T5Config(feed_forward_proj="gated-gelu", **options))
    encoder = T5Encoder(width=4096, layers=24, heads=64, hidden=10240)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 9), jnp.int32))
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert found == sum(value.numel() for value in peer.parameters()) == 4_762_310_656


def test_half_precision_keeps_parameters_and_tokens_in_float32():
    encoder, params = ours(t5_peer())
    half = encoder.clone(dtype="bfloat16")
    shapes = jax.eval_shape(half.init, jax.random.key(0), IDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    one, other = run(half, params, IDS).tokens.features, run(encoder, params, IDS).tokens.features
    assert one.dtype == np.float32
    assert 1e-4 < np.abs(one - other)[IDS != 0].mean() < 0.05


def test_it_is_a_plain_block():
    assert build(describe(SMALL)) == SMALL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation='gelu': expected one of 'gelu_new', 'relu'"),
        ({"heads": 0}, "heads=0: expected a number > 0"),
        ({"buckets": 3}, "buckets=3: expected a number in"),
        ({"max_distance": 8}, "max_distance=8: expected more than 8"),
        ({"dtype": "float8"}, "dtype='float8'"),
    ],
)
def test_impossible_encoders_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SMALL.clone(**options)
