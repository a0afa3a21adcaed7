"""The byte transformer: against PyTorch's encoder, and its dependence on bytes, words, positions and padding."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.conditioning.text import Text
from jaxdiff.data.text import PAD, ByteTokenizer
from jaxdiff.models.text_encoder import ByteTransformer, pool_words
from tests.conditioning.texts import (
    CAPTIONS,
    DROPPED,
    IDS,
    LENGTH,
    PARAMS,
    QUICK,
    SHOWN,
    SIZES,
    TEXT,
    WIDTH,
    a_text,
    assert_same_bits,
    changed,
    embed,
    randomised,
    run,
)

HEADS = 2
PARAMS_ALONE = nn.unbox(a_text(vector_width=None).init(jax.random.key(0), jnp.asarray(IDS), SHOWN))


def test_tokens_match_pytorchs_encoder():
    torch = pytest.importorskip("torch")
    options = {"dropout": 0.0, "activation": "gelu", "norm_first": True, "batch_first": True}
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 3 * WIDTH, **options)
    encoder = torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(WIDTH), enable_nested_tensor=False)
    params = jax.tree.map(np.asarray, PARAMS["params"])
    state = {"norm.weight": params["norm"]["scale"], "norm.bias": params["norm"]["bias"]}
    for i in range(2):
        block, name = params[f"block_{i}"], f"layers.{i}"
        for ours, theirs in (("norm_0", "norm1"), ("norm_1", "norm2")):
            state[f"{name}.{theirs}.weight"], state[f"{name}.{theirs}.bias"] = (
                block[ours]["scale"],
                block[ours]["bias"],
            )
        for ours, theirs, rows in (
            ("query_key_value", "self_attn.in_proj_", WIDTH),
            ("attention_out", "self_attn.out_proj.", WIDTH),
            ("expand", "linear1.", WIDTH),
            ("contract", "linear2.", 3 * WIDTH),
        ):
            state[f"{name}.{theirs}weight"] = block[ours]["kernel"].reshape(rows, -1).T
            state[f"{name}.{theirs}bias"] = block[ours]["bias"].reshape(-1)
    encoder.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    x = torch.tensor(params["bytes"][IDS] + params["places"])
    padding = np.arange(LENGTH)[None] >= SIZES[:, None]
    expected = encoder(x, src_key_padding_mask=torch.tensor(padding)).detach().numpy()
    found = embed()
    np.testing.assert_array_equal(found.mask, ~padding)
    np.testing.assert_allclose(found.tokens[~padding], expected[~padding], atol=2e-5)


def assert_same_text(one, other, rows, atol):
    for i in rows:
        size = SIZES[i]
        features = (one.tokens[i, :size], other.tokens[i, :size])
        np.testing.assert_allclose(*features, rtol=0, atol=atol)
        np.testing.assert_allclose(one.vector[i], other.vector[i], rtol=0, atol=atol)
        assert other.mask[i].sum() == size


def test_padding_never_leaks():
    """Neither the content nor the amount of padding changes the network's input by a bit."""
    params = PARAMS["params"]
    table = params["bytes"].at[0].set(100.0)
    places = params["places"].at[SIZES.max() :].mul(-30.0)
    other = embed(params=changed(bytes=table, places=places))
    assert not np.allclose(other.tokens[:, -1], embed().tokens[:, -1], atol=0.1)
    assert_same_text(embed(), other, range(4), atol=0)

    short = int(SIZES.max())
    part = a_text(length=short)
    ids = part.read(CAPTIONS)
    brief = embed(ids, part=part, params=changed(places=params["places"][:short]))
    assert brief.tokens.shape == (4, short, WIDTH)
    assert_same_text(embed(), brief, range(4), atol=5e-6)


def test_a_window_joins_neighbouring_letters():
    part = a_text(window=5, vector_width=None)
    fresh = nn.unbox(
        part.init(jax.random.key(0), jnp.asarray(IDS), SHOWN)
    )  # attention and MLPs are still zero
    ids = jnp.asarray(part.read(["abcdefgh", "abcdXfgh"]))
    one, other = np.asarray(run(part, fresh, ids, SHOWN[:2]).tokens.features)
    assert np.flatnonzero((one != other).any(axis=-1)).tolist() == [2, 3, 4, 5, 6]
    alone = np.asarray(run(a_text(vector_width=None), PARAMS_ALONE, ids, SHOWN[:2]).tokens.features)
    assert np.flatnonzero((alone[0] != alone[1]).any(axis=-1)).tolist() == [4]


def test_a_phrase_joins_neighbouring_words():
    part = a_text(length=16, words=8, phrase=3)
    params = randomised(part, jnp.asarray(part.read([""])), SHOWN[:1])
    # Nothing else joins words: attention and MLPs are zero, as at the start.
    for block in ("block_0", "block_1"):
        for layer in ("attention_out", "contract"):
            params["params"][block][layer] = jax.tree.map(jnp.zeros_like, params["params"][block][layer])
    ids = part.read(["a b c d e f", "a b c X e f"])
    seen = embed(ids, SHOWN[:2], part, params)
    assert seen.mask.sum(1).tolist() == [6, 6]
    one, other = np.asarray(seen.tokens)
    assert np.flatnonzero((one != other).any(axis=-1)).tolist() == [2, 3, 4]


@pytest.mark.slow
def test_a_phrase_starts_as_zero():
    part = a_text(words=8, phrase=5)
    seen = embed(part=part, params=nn.unbox(part.init(jax.random.key(0), jnp.asarray(IDS), SHOWN)))
    part = a_text(words=8)
    other = embed(part=part, params=nn.unbox(part.init(jax.random.key(0), jnp.asarray(IDS), SHOWN)))
    assert_same_bits(seen, other)


@pytest.mark.parametrize("options", [{"window": 5}, {"words": 8, "phrase": 5}])
def test_padding_is_outside_every_window(options):
    part = a_text(**options)
    params = randomised(part, jnp.asarray(IDS), SHOWN)
    pad = params["params"]["bytes"][PAD]
    changed_pad = {"params": {**params["params"], "bytes": params["params"]["bytes"].at[PAD].set(pad + 1)}}
    one, other = (embed(part=part, params=each) for each in (params, changed_pad))
    assert_same_bits(one, other)


def test_a_word_is_the_sum_of_its_bytes_over_the_root_of_their_number():
    x = np.random.default_rng(0).normal(size=(4, LENGTH, 5)).astype(np.float32)
    found, mask = (np.asarray(part) for part in pool_words(jnp.asarray(x), jnp.asarray(IDS), 3))
    # "a", " red", " 3" and the end; the end; two signs without a space, and the end; "der", " 3", " a" and the end
    parts = [[1, 4, 3], [1], [8], [3, 2, 3]]
    for i, sizes in enumerate(parts):
        assert mask[i].tolist() == [j < len(sizes) for j in range(3)]
        ends = np.cumsum(sizes)
        for j, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            np.testing.assert_allclose(found[i, j], x[i, end - size : end].sum(0) / size**0.5, atol=1e-6)
        assert not found[i, len(sizes) :].any()
    rest, _ = pool_words(jnp.asarray(x), jnp.asarray(IDS), 2)
    np.testing.assert_allclose(rest[0, 1], x[0, 1:8].sum(0) / 7**0.5, atol=1e-6)  # the last takes the rest


def test_the_network_reads_words():
    part = a_text(words=3, window=3)
    params = randomised(part, jnp.asarray(IDS), SHOWN)
    seen = embed(part=part, params=params)
    assert seen.tokens.shape == (4, 3, WIDTH)
    assert seen.mask.tolist() == [[True] * 3, [True, False, False], [True, False, False], [True] * 3]
    other = embed(part.read(["a rde 3", "", "x", "der 3 a"]), part=part, params=params)
    assert (
        np.abs(other.tokens[0] - seen.tokens[0]).max() > 0.1
    )  # letters of a word have an order, by their window
    np.testing.assert_array_equal(other.tokens[3], seen.tokens[3])
    dropped = embed(drop=DROPPED, part=part, params=params)
    np.testing.assert_array_equal(dropped.mask[0], [True, False, False])
    np.testing.assert_array_equal(dropped.tokens[0, 0], dropped.tokens[2, 0])


def test_captions_of_a_batch_are_independent():
    order, batch = np.array([2, 0, 3, 1]), embed()
    for one, other in zip(jax.tree.leaves(batch), jax.tree.leaves(embed(IDS[order])), strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-6)
    others = TEXT.read([CAPTIONS[0], "x", "yy", "zzz"])
    np.testing.assert_allclose(embed(others).tokens[0], batch.tokens[0], atol=1e-6)


def test_different_captions_have_different_embeddings():
    captions = [*CAPTIONS, "a red 8", "a red 3 ", "A red 3", "a\0red 3", "e\u0301", "\u00e9"]
    ids = TEXT.read(captions)
    embeddings = embed(ids, jnp.zeros(len(captions), bool))
    for i in range(len(captions)):
        for j in range(i):
            assert np.abs(embeddings.vector[i] - embeddings.vector[j]).max() > 1e-3, (
                captions[i],
                captions[j],
            )
            tokens = embeddings.tokens[np.array([i, j]), 0]  # each depends on the full text
            assert np.abs(tokens[0] - tokens[1]).max() > 1e-3, (captions[i], captions[j])


def test_half_precision_keeps_parameters_and_tokens_in_float32():
    part = a_text(dtype="bfloat16")
    params = jax.eval_shape(part.init, jax.random.key(0), jnp.asarray(IDS), SHOWN)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    half, full = embed(part=part), embed()
    assert half.tokens.dtype == half.vector.dtype == np.float32
    difference = np.abs(half.tokens - full.tokens)
    assert 1e-4 < difference.mean() < 0.03
    program = run.lower(part.clone(vector_width=None), PARAMS, jnp.asarray(IDS), SHOWN).as_text()
    products = re.findall(r"dot_general .*: \((.*)\) ->", program)
    assert len(products) == 2 * 6  # a block has those of four layers, and two of attention
    assert all(operands.count("xbf16>") == 2 for operands in products)


def test_an_id_out_of_range_becomes_nan():
    for wrong in (-1, 259):
        tokens = embed(np.where(IDS == 1, wrong, IDS)).tokens
        assert np.isnan(tokens[0, 7]).all()


@pytest.mark.slow
def test_the_encoder_learns_a_task_that_depends_on_positions():
    """The third digit of six: without text the error is 1, without positions it is 5/6."""
    part = Text(ByteTokenizer(8), ByteTransformer(32, layers=1, head_dim=16), vector_width=32)
    steps, size = 60, 64
    digits = np.random.default_rng(0).integers(0, 10, (steps + 4, size, 6))
    ids = part.read(["".join(map(str, row)) for row in digits.reshape(-1, 6)])
    ids, shown = jnp.asarray(ids).reshape(steps + 4, size, 8), jnp.zeros(size, bool)
    truth = jnp.asarray((digits[..., 2] - 4.5) / np.sqrt(8.25), jnp.float32)  # of unit variance
    optimizer = optax.adam(3e-3)

    def error(params, ids, truth):
        return jnp.mean(jnp.square(part.apply(params, ids, shown).vector[:, 0] - truth))

    def step(carry, batch):
        params, state = carry
        update, state = optimizer.update(jax.grad(error)(params, *batch), state)
        return (optax.apply_updates(params, update), state), None

    @jax.jit
    def train(params):
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), (ids[4:], truth[4:]))
        return jnp.mean(jax.vmap(error, (None, 0, 0))(params, ids[:4], truth[:4]))

    params = nn.meta.unbox(jax.jit(part.init, compiler_options=QUICK)(jax.random.key(0), ids[0], shown))
    assert train(params) < 0.3
