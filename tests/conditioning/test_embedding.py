"""Precomputed embeddings."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.embedding import EmbeddedSequence
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.generation.inputs import fields
from jaxdiff.models.pixel_attention import AttentionBlock

SIZE, LENGTH = 6, 5
TEXT = EmbeddedSequence(SIZE, LENGTH, width=8, vector_width=16)
SHOWN, DROPPED = jnp.array([False, False]), jnp.array([False, True])


@functools.cache
def values():
    """Two sequences, of three tokens and of five."""
    drawn = np.random.default_rng(0).normal(size=(2, LENGTH, SIZE)).astype(np.float32)
    drawn[0, 3:] = 0
    return drawn


def filled(module, *arguments, seed=1):
    """Parameters that are neither 0 nor 1."""
    leaves, tree = jax.tree.flatten(nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *arguments)))
    rng = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


PARAMS = filled(TEXT, jnp.asarray(values()), SHOWN)


def embed(given, drop=SHOWN, part=TEXT, params=PARAMS):
    embeddings = part.apply(params, jnp.asarray(given), drop)
    assert isinstance(embeddings, Embeddings)
    return embeddings


def test_tokens_are_the_normalised_projection():
    params, tokens = PARAMS["params"], embed(values()).tokens
    projected = values() @ np.asarray(params["project"]["kernel"]) + np.asarray(params["project"]["bias"])
    centred = projected - projected.mean(axis=-1, keepdims=True)
    unit = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    expected = unit * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    np.testing.assert_allclose(tokens.features, expected, atol=1e-5)
    np.testing.assert_array_equal(tokens.mask, [[True] * 3 + [False] * 2, [True] * 5])


def test_the_vector_is_computed_from_the_mean_over_tokens():
    params, embeddings = PARAMS["params"], embed(values())
    mean = np.asarray(embeddings.tokens.features[0, :3]).mean(axis=0)
    hidden = mean @ np.asarray(params["dense_0"]["kernel"]) + np.asarray(params["dense_0"]["bias"])
    hidden = hidden / (1 + np.exp(-hidden))
    expected = hidden @ np.asarray(params["dense_1"]["kernel"]) + np.asarray(params["dense_1"]["bias"])
    np.testing.assert_allclose(embeddings.vector[0], expected, atol=1e-5)
    assert embed(values(), part=TEXT.clone(vector_width=None)).vector is None


def test_nothing_of_a_dropped_sequence_remains():
    first, second = embed(values(), DROPPED), embed(values()[::-1], DROPPED)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a[1], b[1])
        assert not np.array_equal(a[0], b[0])
    null = PARAMS["params"]["null"][0, 0]
    np.testing.assert_array_equal(first.tokens.features[1, 0], null)
    np.testing.assert_array_equal(first.tokens.mask[1], [True] + 4 * [False])
    assert np.array_equal(first.tokens.features[0], embed(values()).tokens.features[0])


def test_a_null_of_zeros_has_no_parameters_and_none_is_always_shown():
    for null in ("zero", "none"):
        part = TEXT.clone(null=null, drop_rate=0.0)
        assert "null" not in filled(part, jnp.asarray(values()), SHOWN)["params"]
        tokens = embed(values(), DROPPED, part).tokens
        if null == "zero":
            assert not tokens.features[1].any()
        else:
            np.testing.assert_array_equal(tokens.features, embed(values()).tokens.features)
            np.testing.assert_array_equal(tokens.mask, embed(values()).tokens.mask)


def test_padding_does_not_change_attention():
    """Padding after the last token is ignored: a shorter array gives the same embedding."""
    block = AttentionBlock(heads=2)
    x = jax.random.normal(jax.random.key(2), (1, 4, 4, 8))
    params = filled(block, x, embed(values()[:1], SHOWN[:1]).tokens)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def seen(given):
        embeddings = TEXT.apply(PARAMS, given, SHOWN[:1])
        return block.apply(params, x, embeddings.tokens), embeddings.vector

    long, short, other = seen(values()[:1]), seen(values()[:1, :3]), seen(values()[1:])
    for i in range(2):
        np.testing.assert_allclose(long[i], short[i], atol=1e-5)
        assert not np.allclose(long[i], other[i], atol=1e-3)


def test_short_sequences_are_padded_and_one_sequence_is_repeated():
    conditioner = Conditioner(NoiseLevel(16), {"text": TEXT})
    rows, absent, n = fields([conditioner], 2, {"text": values()[1, :3]}, (4, 4, 3))
    assert (n, rows["text"].shape) == (2, (2, LENGTH, SIZE))
    np.testing.assert_array_equal(rows["text"][1, :3], values()[1, :3])
    assert not rows["text"][:, 3:].any()
    rows, absent, n = fields([conditioner], None, {"text": values()}, (4, 4, 3))
    assert n == 2
    assert not absent["text"].any()
    rows, absent, n = fields([conditioner], 3, {"text": None}, (4, 4, 3))
    assert absent["text"].all()
    assert rows["text"].shape == (3, LENGTH, SIZE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((2, LENGTH, SIZE + 1), np.float32),
            r"text=float32\[2, 5, 7\]: .* Fix: give floats \[n, 5, 6\]",
        ),
        (np.zeros((2, LENGTH + 1, SIZE), np.float32), r"text=float32\[2, 6, 6\]: "),
        (np.zeros((2, LENGTH, SIZE), int), r"text=int64\[2, 5, 6\]: "),
        (np.full((2, LENGTH, SIZE), np.nan), "expected finite numbers, got NaN"),
        (["a tree"], r"text=<U6\[1\]: "),
    ],
)
def test_invalid_values_raise(given, message):
    with pytest.raises(UserError, match=message):
        TEXT.check(TEXT.read(given), "text")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": 0}, "size=0: "),
        ({"length": -1}, "length=-1: "),
        ({"vector_width": 0}, "vector_width=0: "),
        ({"null": "none"}, "drop_rate=0.1: "),
    ],
)
def test_invalid_fields_raise(option, message):
    with pytest.raises(UserError, match=message):
        EmbeddedSequence(**{"size": 6, "length": 5, "width": 8} | option)
