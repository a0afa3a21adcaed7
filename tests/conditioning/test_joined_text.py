"""A text through several tokenizers and encoders as in SDXL, and "clip skip", against the pipelines of diffusers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.text import Text
from jaxdiff.config import build, describe
from jaxdiff.data.joined_tokenizer import JoinedTokenizer, Texts
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.text import ByteTokenizer, Tokenizer
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError
from jaxdiff.interop.text_encoders import clip_encoder, encoder_params
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.joined_encoder import JoinedEncoder
from tests.conditioning.texts import WIDTH, a_text, randomised
from tests.conditioning.texts import run as embed
from tests.data.test_published_tokenizers import END, FOLDERS, VOCABULARY, write_folder
from tests.text_models import assert_close, clip_peer, numbers

SIZE = {
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 77,
    "eos_token_id": END,
    "num_hidden_layers": 4,
}
TEXTS = ["a photo of a horse", "An Astronaut, riding!", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tokenizer folders of SDXL: their padding differs."""
    root = tmp_path_factory.mktemp("tokenizers")
    return [write_folder(root / name, FOLDERS[name]) for name in ("sd1", "sdxl")]


@pytest.fixture(scope="module")
def peers():
    """SDXL's encoders: the second alone is projected, and they differ in width and activation."""
    small, large = {**SIZE, "hidden_size": 16, "intermediate_size": 24}, {**SIZE, "num_hidden_layers": 3}
    return clip_peer("quick_gelu", projects=False, **small), clip_peer("gelu", **large)


def encoder(peer, **options):
    return clip_encoder(numbers(peer), peer.config.to_dict()).clone(**options)


def ours(folders, peers, null="zero", skip=0):
    """SDXL's text, and its parameters."""
    options = {"layer": -2, "final_norm": False}
    parts = (encoder(peers[0], **options), encoder(peers[1], pooled=True, **options))
    tokenizer = JoinedTokenizer(tuple(map(ClipTokenizer, folders)))
    trees = [encoder_params(part, numbers(peer)) for part, peer in zip(parts, peers, strict=True)]
    return Text(tokenizer, JoinedEncoder(parts), null=null, clip_skip=skip), {
        f"encoder_{i}": tree for i, tree in enumerate(trees)
    }


def sdxl(folders, peers, zeros=True):
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    tokenizers = [transformers.CLIPTokenizer.from_pretrained(folder) for folder in folders]
    return diffusers.StableDiffusionXLPipeline(
        None, *peers, *tokenizers, None, None, force_zeros_for_empty_prompt=zeros
    )


def theirs(pipeline, **options):
    """Embeddings of the texts and of their counterparts without one, then the pooled vectors of both."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return pipeline.encode_prompt(prompt=TEXTS, device="cpu", **options)


def embedded(part, params, texts, dropped=False):
    return embed(part, {"params": params}, jnp.asarray(part.read(texts)), jnp.full(len(texts), dropped))


@pytest.mark.parametrize("negative", ["", "an astronaut"])
def test_tokens_and_pooled_vector_are_sdxls(folders, peers, negative):
    """Also those of a negative text; the empty text is encoded, even where no text is zeros."""
    expected, other, pooled, other_pooled = theirs(sdxl(folders, peers), negative_prompt=[negative] * 3)
    part, params = ours(folders, peers)
    found, without = embedded(part, params, TEXTS), embedded(part, params, [negative] * 3)
    assert_close(found.tokens.features, expected)
    assert_close(found.vector, pooled)
    assert_close(without.tokens.features, other)
    assert_close(without.vector, other_pooled)
    assert found.tokens.mask.all()


def test_no_text_is_the_empty_one_or_zeros(folders, peers):
    _, empty, _, empty_pooled = theirs(sdxl(folders, peers, zeros=False))
    found = embedded(*ours(folders, peers, "empty"), TEXTS, dropped=True)
    assert_close(found.tokens.features, empty)
    assert_close(found.vector, empty_pooled)
    _, zeros, _, zeros_pooled = theirs(sdxl(folders, peers))
    found = embedded(*ours(folders, peers), TEXTS, dropped=True)
    np.testing.assert_array_equal(found.tokens.features, zeros)
    np.testing.assert_array_equal(found.vector, zeros_pooled)
    assert found.tokens.mask.any(axis=1).all()  # attention to one of several equal tokens is attention to all


@pytest.mark.spread(1)
@pytest.mark.parametrize("null", ["zero", "empty"])
def test_a_clip_skip_of_sdxl_acts_on_the_tokens_of_a_prompt_alone(folders, peers, null):
    """Neither on what is shown without one, nor on a negative one, nor on the pooled vectors."""
    part, params = ours(folders, peers, null, skip=1)
    pipe = sdxl(folders, peers, zeros=null == "zero")
    expected, other, pooled, other_pooled = theirs(pipe, clip_skip=1)
    found, without = embedded(part, params, TEXTS), embedded(part, params, TEXTS, dropped=True)
    _, negative, _, negative_pooled = theirs(pipe, clip_skip=1, negative_prompt=TEXTS)
    opposed = embedded(part.for_negative(), params, TEXTS)
    compared = [(found, expected, pooled), (opposed, negative, negative_pooled)]
    compared += [] if null == "zero" else [(without, other, other_pooled)]
    for each, tokens, vectors in compared:
        assert_close(each.tokens.features, tokens)
        assert_close(each.vector, vectors)
    if null == "zero":
        assert not np.any(without.tokens.features)
    assert np.abs(found.tokens.features - opposed.tokens.features).max() > 0.1


@pytest.mark.slow
def test_a_clip_skip_acts_on_embeddings_that_are_given_as_on_texts(folders, peers):
    part, params = ours(folders, peers, "empty", skip=1)
    ids, drop = jnp.asarray(part.read(TEXTS)), jnp.array([False, True, False])
    precompute = jax.jit(functools.partial(part.apply, method="precompute"))
    given = precompute({"params": params}, ids)
    found, expected = (embed(part, {"params": params}, values, drop) for values in (given, ids))
    assert_close(found.tokens.features, expected.tokens.features)
    assert_close(found.vector, expected.vector)
    assert part.precomputed_by == ("tokenizer", "encoder", "clip_skip")


@pytest.mark.parametrize("skip", [-1, 3])
def test_a_clip_skip_that_leaves_no_state_is_refused(folders, peers, skip):
    with pytest.raises(UserError, match=rf"clip_skip={skip}: expected 0 to 2 blocks"):
        ours(folders, peers, skip=skip)
    with pytest.raises(UserError, match="clip_skip=1: expected 0 to 0 blocks"):
        a_text().clone(clip_skip=1)


@pytest.mark.spread(1)
@pytest.mark.parametrize("skip", [None, 1, 2])
def test_a_clip_skip_of_stable_diffusion_has_the_last_norm(folders, peers, skip):
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    peer, tokenizer = peers[0], transformers.CLIPTokenizer.from_pretrained(folders[0])
    if not hasattr(peer, "text_model"):  # the pipeline looks for the last norm under this name
        object.__setattr__(peer, "text_model", peer)
    pipeline = diffusers.StableDiffusionPipeline(
        None, peer, tokenizer, None, None, None, None, requires_safety_checker=False
    )
    options = {"num_images_per_prompt": 1, "do_classifier_free_guidance": True, "clip_skip": skip}
    expected, empty = theirs(pipeline, **options)
    part = Text(ClipTokenizer(folders[0]), encoder(peer), null="empty", clip_skip=skip or 0)
    params = encoder_params(part.encoder, numbers(peer))
    assert_close(embedded(part, params, TEXTS).tokens.features, expected)
    assert_close(embedded(part, params, TEXTS, dropped=True).tokens.features, empty)
    whole = part.clone(
        clip_skip=0, encoder=part.encoder.clone(layer=-1 - (skip or 0))
    )  # also for the empty text
    assert_close(embedded(whole, params, TEXTS).tokens.features, expected)


def test_joined_tokenizers_are_a_tokenizer(folders):
    one, other = map(ClipTokenizer, folders)
    joined = JoinedTokenizer((one, other))
    assert isinstance(joined, Tokenizer)
    assert joined.length == 154
    ids = joined.encode_batch(TEXTS)
    np.testing.assert_array_equal(ids[:, :77], one.encode_batch(TEXTS))
    np.testing.assert_array_equal(ids[:, 77:], other.encode_batch(TEXTS))
    np.testing.assert_array_equal(ids[1], joined.encode(TEXTS[1]))
    assert joined.decode(ids[0]) == TEXTS[0]
    joined.check(ids)
    assert build(describe(joined)) == joined
    for wrong, message in (
        (ids[:, :77], r"text=int32\[3, 77\]: expected texts"),
        (np.where(ids == END, 0, ids), "windows of 77 ids"),
        (np.where(np.arange(154) == 153, 10**6, ids), "text=1000000: expected ids from 0"),
    ):
        with pytest.raises(UserError, match=message):
            joined.check(wrong)
    with pytest.raises(UserError, match=r"text\[1\]=3: expected a text"):
        joined.encode_batch(["a", 3])


class Numbers(ClipTextEncoder):
    """The ids as features, valid where they are positive; if `pooled`, the first is the vector."""

    def __call__(self, ids):
        features = ids[..., None].astype(jnp.float32)
        return Embeddings(features[:, 0] if self.pooled else None, Tokens(features, ids > 0))


def numbers_encoder(pooled=False):
    return Numbers(width=4, layers=1, heads=1, pooled=pooled)


def test_a_token_is_valid_where_all_encoders_have_one():
    part = JoinedEncoder((numbers_encoder(), numbers_encoder()))
    found = part.apply({}, jnp.array([[1, 2, 0, 4, 0, 6]]))
    np.testing.assert_array_equal(found.tokens.features[0], [[1, 4], [2, 0], [0, 6]])
    assert found.tokens.mask.tolist() == [[True, False, False]]
    assert found.vector is None


@pytest.mark.parametrize(("pooled", "expected"), [((True, True), 4), ((True, False), 1), ((False, True), 4)])
def test_the_vector_is_the_last_one_that_an_encoder_gives(pooled, expected):
    part = JoinedEncoder(tuple(map(numbers_encoder, pooled)))
    assert part.apply({}, jnp.array([[1, 2, 0, 4, 0, 6]])).vector.tolist() == [[expected]]


@pytest.mark.slow
def test_parameters_are_named_by_the_order_of_the_encoders():
    encoders = (a_text().encoder, a_text(width=8).encoder)
    part = Text(JoinedTokenizer((ByteTokenizer(6), ByteTokenizer(6))), JoinedEncoder(encoders), null="empty")
    ids = jnp.asarray(part.read(["a cat"]))
    params = randomised(part, ids, jnp.zeros(1, bool))["params"]
    assert set(params) == {"encoder_0", "encoder_1"}
    found = embed(part, {"params": params}, ids, jnp.zeros(1, bool)).tokens.features
    for i, (module, columns) in enumerate(zip(encoders, (slice(WIDTH), slice(WIDTH, None)), strict=True)):
        alone = module.apply({"params": params[f"encoder_{i}"]}, ids[:, :6]).tokens.features
        np.testing.assert_allclose(found[..., columns], alone, atol=1e-5)
    assert build(describe(part)) == part


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JoinedTokenizer((ByteTokenizer(6),)), "two or more tokenizers of one length"),
        (lambda: JoinedTokenizer((ByteTokenizer(6), ByteTokenizer(7))), r"tokenizers=\[6, 7\]: expected"),
        (lambda: JoinedEncoder((numbers_encoder(),)), "encoders=1: expected two or more"),
        (
            lambda: JoinedEncoder((numbers_encoder(),) * 2).apply({}, jnp.zeros((1, 3), int)),
            "ids=3: expected equal parts for 2 encoders",
        ),
    ],
)
def test_misfits_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(make)


def test_each_tokenizer_may_have_its_own_text(folders):
    parts = tuple(map(ClipTokenizer, folders))
    tokenizer = JoinedTokenizer(parts)
    ids = tokenizer.encode(Texts(tuple(TEXTS[:2])))
    np.testing.assert_array_equal(ids, np.concatenate([parts[0].encode(TEXTS[0]), parts[1].encode(TEXTS[1])]))
    np.testing.assert_array_equal(tokenizer.encode(Texts((TEXTS[0],) * 2)), tokenizer.encode(TEXTS[0]))
    both = tokenizer.encode_batch([TEXTS[2], Texts(tuple(TEXTS[:2]))])
    np.testing.assert_array_equal(both, [tokenizer.encode(TEXTS[2]), ids])
    long = "horse " * 90
    assert tokenizer.measure(Texts(("a", long))).lost == parts[1].measure(long).lost != ""
    for wrong in ((), ("ab",), tuple(TEXTS)):
        with pytest.raises(
            UserError, match=rf"text=.*: expected 2 texts, one for each encoder, got {len(wrong)}"
        ):
            tokenizer.encode(Texts(wrong))
    with pytest.raises(UserError, match=r"text\[1\]=3"):
        tokenizer.encode(Texts(("a", 3)))


def test_words_of_a_command_line_may_have_a_text_for_each_encoder(folders, peers, tmp_path, caplog):
    part, _ = ours(folders, peers)
    listed, texts = '["a horse", "caf\u00e9"]', Texts(("a horse", "caf\u00e9"))
    assert (
        part.parse(listed, "--condition text")
        == [texts]
        == [part.from_json(["a horse", "caf\u00e9"], "", tmp_path)]
    )
    for literal in ("a horse", "[masterpiece], horse", "[1, 2]", "[]"):
        assert part.parse(literal, "--condition text") == [literal]
    np.testing.assert_array_equal(part.read(["", texts])[1], part.tokenizer.encode(texts))
    assert part.to_arrays(["", texts], "text", 2)["text"].tolist() == ["", listed]
    one = Text(ClipTokenizer(folders[0]), encoder(peers[0]))
    with pytest.raises(UserError, match=r"--condition text=.*expected one text for the one text encoder"):
        one.parse(listed, "--condition text")
    np.testing.assert_array_equal(one.read(texts), one.read("a horse"))  # as the refiner
    assert "of 2 texts, the one text encoder of the model reads 'a horse'" in caplog.text
