"""The text condition: its vector, its nulls, its parameters, what it reads, and its use in a model."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.data.text import END, PAD, ByteTokenizer, Tokenize
from jaxdiff.data.text import IDS as IDS_OF_BYTES
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Data
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
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
    VECTOR,
    WIDTH,
    a_text,
    assert_same_bits,
    changed,
    embed,
    randomised,
    run,
)


def test_the_vector_is_computed_from_the_mean_over_tokens():
    embeddings, pool = embed(), jax.tree.map(np.asarray, PARAMS["params"]["pool"])
    for i, size in enumerate(SIZES):
        mean = embeddings.tokens[i, :size].mean(axis=0)
        mean = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-5)
        mean = mean * pool["norm"]["scale"] + pool["norm"]["bias"]
        hidden = mean @ pool["dense_0"]["kernel"] + pool["dense_0"]["bias"]
        hidden = hidden / (1 + np.exp(-hidden))
        expected = hidden @ pool["dense_1"]["kernel"] + pool["dense_1"]["bias"]
        np.testing.assert_allclose(embeddings.vector[i], expected, atol=1e-4)
    assert embed(part=a_text(vector_width=None)).vector is None


def test_nothing_of_a_dropped_caption_remains():
    first, second = embed(IDS, DROPPED), embed(np.roll(IDS, 2, axis=0), DROPPED)
    null, vector = PARAMS["params"]["null"][0, 0], PARAMS["params"]["pool"]["null"][0]
    for embeddings in (first, second):
        for i in (0, 2, 3):
            np.testing.assert_array_equal(embeddings.tokens[i, 0], null)
            np.testing.assert_array_equal(embeddings.mask[i], [True] + (LENGTH - 1) * [False])
            np.testing.assert_array_equal(embeddings.vector[i], vector)
    np.testing.assert_allclose(first.vector[1], embed().vector[1], atol=1e-6)
    np.testing.assert_array_equal(first.mask[1], embed().mask[1])
    assert not np.allclose(first.tokens[1, 0], null, atol=0.1)  # nor is the empty caption the null
    # No parameter of the null is one of a caption, and the other way round.
    broken = changed(null=PARAMS["params"]["null"] * np.nan)
    np.testing.assert_array_equal(embed(params=broken).tokens, embed().tokens)
    broken = changed(bytes=PARAMS["params"]["bytes"] * np.nan)
    found = embed(drop=~SHOWN, params=broken)
    np.testing.assert_array_equal(found.vector, np.tile(vector, (4, 1)))
    np.testing.assert_array_equal(found.tokens[:, 0], np.tile(null, (4, 1)))


def test_a_null_of_zeros_has_no_parameters_and_none_is_always_shown():
    for null in ("zero", "none"):
        part = a_text(null=null, drop_rate=0.0)
        params = randomised(part, jnp.asarray(IDS), SHOWN)["params"]
        assert "null" not in params
        assert "null" not in params["pool"]
        embeddings = embed(IDS, DROPPED, part)
        if null == "zero":
            assert not embeddings.tokens[0].any()
            assert not embeddings.vector[0].any()
            assert embeddings.mask[0].sum() == 1
        else:
            for one, other in zip(jax.tree.leaves(embeddings), jax.tree.leaves(embed()), strict=True):
                np.testing.assert_array_equal(one, other)


def test_the_empty_null_is_the_encoding_of_the_empty_text():
    """Bit for bit, in mixed batches, and without additional parameters."""
    part = a_text(null="empty")
    assert part.null != "none"
    params = randomised(part, jnp.asarray(IDS), SHOWN)
    assert not any("null" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params))
    empty = embed(part.read([CAPTIONS[0] if shown else "" for shown in ~DROPPED]), part=part, params=params)
    mixed = embed(part.read([CAPTIONS[0]] * 4), DROPPED, part, params)
    assert_same_bits(empty, mixed)
    other = embed(part.read([CAPTIONS[0], CAPTIONS[0], CAPTIONS[3], "x"]), DROPPED, part, params)
    assert_same_bits(empty, other)
    assert mixed.mask[0].sum() == 1
    assert not np.allclose(mixed.vector[0], mixed.vector[1], atol=0.1)


class Lookup(nn.Module):
    """An encoder with a vector of its own: the embedding of the first id."""

    @nn.compact
    def __call__(self, ids):
        features = nn.Embed(IDS_OF_BYTES, WIDTH, name="embed")(ids)
        return Embeddings(vector=features[:, 0], tokens=Tokens(features, ids != PAD))


@pytest.mark.parametrize("null", ["learned", "zero", "none", "empty"])
def test_an_encoder_may_have_its_own_vector(null):
    part = Text(ByteTokenizer(LENGTH), Lookup(), null=null, drop_rate=0.0)
    params = randomised(part, jnp.asarray(IDS), SHOWN)
    table = np.asarray(params["params"]["embed"]["embedding"])
    dropped = np.asarray(DROPPED)
    nulls = {
        "learned": lambda: params["params"]["null_vector"],
        "zero": lambda: np.zeros((1, WIDTH)),
        "none": lambda: table[IDS[dropped, 0]],
        "empty": lambda: table[[END]],
    }
    found = embed(drop=DROPPED, part=part, params=params).vector
    np.testing.assert_array_equal(found[~dropped], table[IDS[~dropped, 0]])
    np.testing.assert_array_equal(found[dropped], np.broadcast_to(nulls[null](), (3, WIDTH)))


@pytest.mark.spread(2)
@pytest.mark.parametrize("null", ["learned", "zero", "empty"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_the_encoder_has_made_of_texts_stands_for_them(null, dtype):
    """Nulls, too; in half precision as well, up to its rounding."""
    part = a_text(null=null)
    params = randomised(part, jnp.asarray(IDS), SHOWN)
    encoded = jax.jit(lambda ids: part.apply(params, ids, method="precompute"))(jnp.asarray(IDS))
    features = encoded.tokens.features.astype(dtype)
    stored = encoded.replace(tokens=encoded.tokens.replace(features=features))
    for drop in (SHOWN, DROPPED):
        found, expected = (run(part, params, values, drop) for values in (stored, jnp.asarray(IDS)))
        np.testing.assert_array_equal(found.tokens.mask, expected.tokens.mask)
        assert found.tokens.features.dtype == expected.tokens.features.dtype
        tolerance = 1e-4 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(found.tokens.features, expected.tokens.features, tolerance, tolerance)
        np.testing.assert_allclose(found.vector, expected.vector, tolerance, tolerance)


def test_the_encoders_parameters_belong_to_the_condition():
    """Checkpoints of version 0.1.0, which had no separate encoder, have these names."""
    part = a_text(window=3, words=4, phrase=3)
    tree = jax.eval_shape(part.init, jax.random.key(0), jnp.asarray(IDS), SHOWN)["params"]
    assert set(tree) == {"bytes", "places", "window", "phrase", "block_0", "block_1", "norm", "pool", "null"}
    assert set(tree["block_0"]) == {
        "norm_0",
        "query_key_value",
        "attention_out",
        "norm_1",
        "expand",
        "contract",
    }
    assert set(tree["pool"]) == {"norm", "dense_0", "dense_1", "null"}
    assert set(tree["window"]) == set(tree["phrase"]) == {"dense_0", "dense_1"}


def test_old_configs_of_the_text_condition_build():
    old = {
        "target": "jaxdiff.conditioning.text:Text", "width": WIDTH, "length": LENGTH, "layers": 2, "head_dim": 8,
        "expansion": 3, "window": 1, "words": None, "phrase": 1, "vector_width": VECTOR, "drop_rate": 0.1,
        "null": "learned", "dtype": "float32",
    }  # fmt: skip
    assert config.build(config.from_json(json.dumps(old))) == TEXT
    tokenize = {"target": "jaxdiff.data.text:Tokenize", "length": LENGTH, "field": "caption"}
    assert config.build(config.from_json(json.dumps(tokenize))) == Tokenize(TEXT.tokenizer, "caption")


def test_every_parameter_is_learned():
    drop = jnp.array([False, False, False, True])

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.grad
    def slopes(params):
        embeddings = TEXT.apply(params, jnp.asarray(IDS), drop)
        shown = jnp.where(embeddings.tokens.mask[..., None], embeddings.tokens.features, 0)
        return jnp.sum(jnp.sin(shown)) + jnp.sum(jnp.sin(embeddings.vector))

    found = slopes(PARAMS)["params"]
    for path, slope in jax.tree_util.tree_leaves_with_path(found):
        slope = np.asarray(slope)
        if path[-1].key == "bias" and slope.ndim == 3:
            slope = slope[[0, 2]]  # softmax ignores a constant added to every key
        rows = slope.reshape(-1, slope.shape[-1])
        assert np.abs(rows).max() > 1e-4, path
    used = set(np.unique(IDS[:3])) - {0}
    assert set(np.flatnonzero(np.abs(found["bytes"]).max(axis=1) > 1e-4)) == used
    assert set(np.flatnonzero(np.abs(found["places"]).max(axis=1) > 1e-4)) == set(range(SIZES.max()))


def test_strings_and_ids_are_read_alike():
    for caption in ("a red 3", b"a red 3", np.array("a red 3"), np.array(b"a red 3")):
        np.testing.assert_array_equal(TEXT.read(caption), IDS[0])
    given = [tuple(CAPTIONS), np.array(CAPTIONS), np.array(CAPTIONS, object), IDS, IDS.tolist()]
    given += [[caption.encode() for caption in CAPTIONS], np.array([c.encode() for c in CAPTIONS])]
    for captions in given:
        np.testing.assert_array_equal(TEXT.read(captions), IDS)
    np.testing.assert_array_equal(TEXT.read(["a\0"]), [[100, 3, 1] + (LENGTH - 3) * [0]])
    TEXT.check(IDS)
    TEXT.check(TEXT.example(3))
    np.testing.assert_array_equal(TEXT.example(3), np.tile(IDS[1], (3, 1)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((2, LENGTH), np.float32),
            r"text=float32\[2, 12\]: expected texts or their ids.* Fix: give strings, or ids",
        ),
        (IDS[:, :-1], r"text=int32\[4, 11\]: "),
        ([], r"text=float64\[0\]: "),
        (np.where(IDS == 1, 259, IDS), "text=259: expected ids from 0 to 258"),
        (-IDS, "text=-[0-9]+: expected ids"),
        (np.where(IDS == 1, 7, IDS), r"text\[0\]=.*one end"),
        (np.zeros((1, LENGTH), int), r"text\[0\]=\[0, .*one end"),
        (np.eye(1, LENGTH, dtype=int) * 7, r"text\[0\]=\[7, 0, .*one end"),
        (np.concatenate([IDS[:1], IDS[:1] + (IDS[:1] == 0)]), r"text\[1\]=.*one end and then padding"),
        (np.where(np.arange(LENGTH) == 2, 0, IDS[:1]), r"text\[0\]=.*one end and then padding"),
        (np.where(np.arange(LENGTH) == 10, 9, IDS[:1]), r"text\[0\]=.*one end and then padding"),
        (["a", None], r"text\[1\]=None: expected a text, got NoneType"),
        (["a", "\ud800"], r"text\[1\]='\\ud800': .*surrogate"),
    ],
)
def test_invalid_values_raise(given, message):
    with pytest.raises(UserError, match=message):
        TEXT.check(TEXT.read(given), "text")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"width": 0}, "width=0: "),
        ({"layers": 0}, "layers=0: "),
        ({"expansion": 0}, "expansion=0: "),
        ({"vector_width": -1}, "vector_width=-1: "),
        ({"width": 20}, "width=20: expected a multiple of head_dim=8"),
        ({"words": 0}, "words=0: "),
        ({"window": 4}, "window=4: expected an odd number"),
        ({"words": 8, "phrase": 2}, "phrase=2: expected an odd number"),
        ({"phrase": 3}, "phrase=3: expected 1 where tokens are bytes"),
        ({"length": 1}, "length=1: expected 2 or more"),
        ({"null": "none", "drop_rate": 0.1}, "drop_rate=0.1: "),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_invalid_fields_raise(option, message):
    with pytest.raises(UserError, match=message):
        a_text(**option)


def test_texts_of_another_length_than_the_tokenizers_raise():
    with pytest.raises(UserError, match=r"tokenizer.length=12: expected the 10 ids of this batch's texts"):
        TEXT.apply(PARAMS, jnp.asarray(IDS[:, :10]), SHOWN)


def test_a_config_describes_it():
    block = json.loads(json.dumps(config.describe(TEXT).to_dict()))
    assert config.build(block) == TEXT


@functools.cache
def a_generator(cross_attention=True):
    """An untrained network that reads text by vector and tokens."""
    attention = PixelAttention(False, True, head_dim=4) if cross_attention else None
    levels = (Level(8, blocks=0, attention=attention),)
    network = UNet(levels, out_channels=1, middle=ResidualMiddle(attention))
    conditioner = Conditioner(NoiseLevel(VECTOR), {"text": TEXT})
    denoiser = Denoiser(network, conditioner, RectifiedFlow(), Data())
    x, t = jnp.zeros((1, 4, 4, 1)), jnp.full(1, 0.5)
    fields = conditioner.example(1), conditioner.none_dropped(1)
    params = randomised(denoiser, x, t, *fields, train=False)["params"]
    params = jax.tree.map(lambda leaf: 0.6 * leaf, params)  # colours that are neither black nor white
    axes = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh((1, 1, 1), axes, (jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()[:1])
    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(), steps=2)
    return Generator(denoiser, params, recipe, (4, 4, 1), mesh)


@pytest.mark.slow
def test_images_follow_text_and_negative_text():
    def images(*texts, **options):
        return a_generator()(text=list(texts) if texts[0] is not None else None, n=2, **options).astype(int)

    red, other = images("a red 3", "der 3 a")
    assert len(np.unique(red)) > 3
    assert np.abs(red - other).max() > 1
    np.testing.assert_array_equal(a_generator()(2, text="a red 3")[0], red)
    none = images(None)
    assert not np.array_equal(none[0], red)
    assert not np.array_equal(none, images("", ""))

    both = ("a red 3", "a red 3")
    guided = images(*both, guidance=2.0)
    away = images(*both, guidance=2.0, negative={"text": "der 3 a"})
    assert len({image[0].tobytes() for image in (red[None], guided, away)}) == 3
    same = images(*both, guidance=2.0, negative={"text": "a red 3"})
    np.testing.assert_allclose(same[0], red, atol=1)
    np.testing.assert_array_equal(images(*both, guidance=2.0, negative={"text": None}), guided)


def test_text_needs_a_network_that_reads_tokens():
    with pytest.raises(UserError, match="expected cross-attention, because a condition gives tokens"):
        a_generator(cross_attention=False)
