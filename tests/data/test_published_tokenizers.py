"""Tokenizers of published models against transformers', on vocabularies that are learned here."""

import copy
import json
import pickle

import numpy as np
import pytest
import tokenizers

from jaxdiff.config import build, describe
from jaxdiff.data.published_tokenizers import ClipTokenizer, T5Tokenizer
from jaxdiff.data.text import Tokenizer
from jaxdiff.data.tokenizer_files import FILES
from jaxdiff.errors import UserError
from tests.data.clip_vocabulary import MERGES, VOCABULARY, WORDS

TEXTS = (
    "",
    " ",
    "A Photo of an ASTRONAUT riding a horse",
    "  white\n\tspace \u00a0 everywhere\u3000here ",
    "2024 horses, 3.14",
    "(a horse:1.2) [photo] {of}, ((masterpiece))",
    "don't we'll it's I'd they've O'Neill's",
    "caf\u00e9 cafe\u0301 \u1e9b\u0323 \ufb01sh",
    "\u0130stanbul STRASSE \u00df",
    "\U0001f469\u200d\U0001f680 \u5b87\u822a\u54e1 \u0939\u093f\u0928\u094d\u0926\u0940",
    "horse! photo!! a ! b",
    "a<|endoftext|>b <|startoftext|> <|ENDOFTEXT|>",
    "a&amp;b <br/> x_y-z \0 nul",
    "<toy> a <toy>horse <TOY> <pad> <PAD>",
)
LONG = "a photo of a horse " * 30


BEGIN, END = len(VOCABULARY) - 2, len(VOCABULARY) - 1
ROLES = {
    role: {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    for role, token in (("bos_token", "<|startoftext|>"), ("eos_token", "<|endoftext|>"))
}
TYPED = {role: {"__type": "AddedToken", **token} for role, token in ROLES.items()}
ADDED = {
    str(index): {
        "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True
    }
    for index, token in ((0, "!"), (BEGIN, "<|startoftext|>"), (END, "<|endoftext|>"))
}  # fmt: skip
SETTINGS = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "unk_token": "<|endoftext|>"}
FOLDERS = {
    # Stable Diffusion 1: old style, with the roles in both files.
    "sd1": {
        "tokenizer_config.json": SETTINGS | TYPED | {"pad_token": "<|endoftext|>"},
        "special_tokens_map.json": ROLES | {"pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    },
    # Stable Diffusion 2: the two files differ in their padding, and the map is right.
    "sd2": {
        "tokenizer_config.json": SETTINGS | TYPED | {"pad_token": "<|endoftext|>"},
        "special_tokens_map.json": ROLES | {"pad_token": "!", "unk_token": ROLES["eos_token"]},
    },
    # SDXL's second: the config lists its added tokens, and the map does not count.
    "sdxl": {
        "tokenizer_config.json": SETTINGS | {"added_tokens_decoder": ADDED, "pad_token": "!"},
        "special_tokens_map.json": ROLES | {"pad_token": "<|endoftext|>"},
    },
    "bare": {},
    # Textual inversion adds a token behind the end. Here padding is such a token, too.
    "added": {
        "added_tokens.json": {"<toy>": END + 1, "<pad>": END + 2},
        "special_tokens_map.json": {"pad_token": "<pad>"},
    },
}
PADS = {"sd1": END, "sd2": 0, "sdxl": 0, "bare": END, "added": END + 2, "one_file": 0}


def write_folder(folder, files):
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tokenizer folders of published models, by their kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write_folder(root / name, files) for name, files in FOLDERS.items()}


def save_as_one_file(folders, folder):
    """``tokenizer.json`` as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    transformers.CLIPTokenizer.from_pretrained(folders["sdxl"]).save_pretrained(folder)
    assert (folder / "tokenizer.json").exists()
    return str(folder)


@pytest.mark.parametrize("name", PADS)
def test_ids_are_transformers(folders, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    folder = save_as_one_file(folders, tmp_path) if name == "one_file" else folders[name]
    theirs, ours = transformers.CLIPTokenizer.from_pretrained(folder), ClipTokenizer(folder)
    for text in (*TEXTS, LONG):
        expected = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert ours.encode(text).tolist() == expected, text
    empty = ours.encode("")
    assert (empty.dtype, empty.tolist()) == (np.int32, [BEGIN, END, *[PADS[name]] * 75])


def test_a_copy_of_the_files_is_a_copy_of_the_tokenizer(folders, tmp_path):
    copied = tmp_path / "copy"
    write_folder(copied, {name: files for name, files in FOLDERS["sd2"].items() if name in FILES})
    one, other = ClipTokenizer(folders["sd2"]), ClipTokenizer(str(copied))
    np.testing.assert_array_equal(one.encode_batch(TEXTS), other.encode_batch(TEXTS))


def test_parentheses_are_literal(folders):
    tokenizer = ClipTokenizer(folders["sd1"])
    assert tokenizer.decode(tokenizer.encode("(a horse:1.2)")) == "( a horse : 1 . 2 )"


def test_the_first_cut_of_a_text_is_shown(folders, caplog):
    tokenizer = ClipTokenizer(folders["sd1"])
    words = ["caf\u00e9", *["horse"] * 69, "Photo", "\U0001f469", "(riding)"]
    kept = next(i for i in range(75) if tokenizer_size(folders, words[: i + 1]) > 75)
    for _ in range(2):
        tokenizer.encode(" ".join(words))
        tokenizer.encode("fits")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert f"a text of {tokenizer_size(folders, words)} tokens was cut to 75: lost" in message
    assert repr(" ".join(words[kept:]))[1:] in message
    assert "raise the tokenizer's chunks" in message


def tokenizer_size(folders, words):
    """The number of tokens of a text, begin and end not counted."""
    ids = ClipTokenizer(folders["sd1"], window=1000).encode(" ".join(words))
    return ids.tolist().index(END) - 1


def test_chunks_join_windows_instead_of_cutting(folders, caplog):
    once = ClipTokenizer(folders["sd2"], window=1000).encode(LONG)
    tokens = once[1 : once.tolist().index(END)]
    tokenizer = ClipTokenizer(folders["sd2"], chunks=3)
    assert 75 < len(tokens) < 225
    assert tokenizer.length == 231
    windows = tokenizer.encode(LONG).reshape(3, 77)
    assert not caplog.records
    assert (windows[:, 0] == BEGIN).all()
    np.testing.assert_array_equal(
        np.concatenate([row[1 : row.tolist().index(END)] for row in windows]), tokens
    )
    sizes = [row.tolist().index(END) - 1 for row in windows]
    assert sizes[0] == 75
    for row, size in zip(windows, sizes, strict=True):
        assert (row[size + 2 :] == 0).all()
    assert tokenizer.decode(windows.reshape(-1)) == LONG.strip()
    short = tokenizer.encode("a horse").reshape(3, 77)
    np.testing.assert_array_equal(short[0], ClipTokenizer(folders["sd2"]).encode("a horse"))
    np.testing.assert_array_equal(short[1:], ClipTokenizer(folders["sd2"]).encode_batch(["", ""]))


def test_texts_come_back_in_lower_case(folders):
    for name in FOLDERS:
        tokenizer = ClipTokenizer(folders[name])
        text = "a photo of caf\u00e9 \u5b87\u822a\u54e1 \U0001f680"
        assert tokenizer.decode(tokenizer.encode(f"  {text.upper()}")) == text
        assert tokenizer.decode(tokenizer.encode("")) == ""


def test_a_batch_is_its_texts(folders):
    tokenizer = ClipTokenizer(folders["sd1"])
    batch = tokenizer.encode_batch(TEXTS)
    assert isinstance(tokenizer, Tokenizer)
    for text, row in zip(TEXTS, batch, strict=True):
        np.testing.assert_array_equal(row, tokenizer.encode(text))
        np.testing.assert_array_equal(row, tokenizer.encode(text.encode()))
    assert tokenizer.encode_batch([]).shape == (0, 77)
    tokenizer.check(batch)


def test_a_tokenizer_is_a_plain_block(folders):
    for one in (ClipTokenizer(folders["sd1"], chunks=2), T5Tokenizer("somewhere", 9)):
        for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), build(describe(one))):
            assert other == one
            assert hash(other) == hash(one)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    """A folder of T5's tokenizer as transformers writes it, with unigrams that are learned here."""
    transformers = pytest.importorskip("transformers")
    learner = tokenizers.Tokenizer(tokenizers.models.Unigram())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    learner.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    pieces = [tuple(piece) for piece in json.loads(learner.to_str())["model"]["vocab"]]
    folder = tmp_path_factory.mktemp("t5")
    transformers.T5Tokenizer(vocab=pieces).save_pretrained(folder)
    return str(folder)


def test_t5_ids_are_transformers(t5_folder, caplog):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.T5Tokenizer.from_pretrained(t5_folder), T5Tokenizer(t5_folder, 20)
    for text in ("", "a photo of  a horse ", "an Unknown caf\u00e9", "a </s> horse", "<pad>", LONG):
        expected = theirs(text, padding="max_length", max_length=20, truncation=True).input_ids
        assert ours.encode(text).tolist() == expected, text
    (record,) = caplog.records
    assert "raise the tokenizer's length" in record.getMessage()
    assert ours.decode(ours.encode("a photo of  a horse ")) == "a photo of a horse"
    assert isinstance(ours, Tokenizer)
    ours.check(ours.encode_batch(["", LONG]))


def test_a_folder_with_spiece_model_only_says_how_it_is_converted(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"\n")
    with pytest.raises(
        UserError, match=r"expected tokenizer.json in it.*Fix: write it once.*save_pretrained"
    ):
        T5Tokenizer(str(tmp_path)).encode("a")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"vocab.json": None},
            "expected vocab.json and merges.txt, or tokenizer.json, got neither. Fix: give",
        ),
        ({"vocab.json": "{"}, r"vocab.json': expected JSON"),
        ({"vocab.json": "[]"}, "expected a JSON object, got another value"),
        ({"vocab.json": '{"a": 0}'}, "expected files of a tokenizer, got .*Fix: download"),
        ({"merges.txt": "a b c"}, "expected files of a tokenizer, got "),
        (
            {"added_tokens.json": '{"<toy>": 5}'},
            "expected files of a tokenizer, got id 5 of '<toy>', which would be",
        ),
    ],
)
def test_damaged_folders_are_refused(tmp_path, files, message):
    folder = write_folder(tmp_path / "damaged", {})
    for name, content in files.items():
        file = tmp_path / "damaged" / name
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
    with pytest.raises(UserError, match=message):
        ClipTokenizer(folder).encode("a")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda one: ClipTokenizer(one.folder, chunks=0), "chunks=0: expected a number > 0"),
        (lambda one: ClipTokenizer(one.folder, window=2), "window=2: expected 3 or more"),
        (lambda one: T5Tokenizer(one.folder, 1), "length=1: expected 2 or more"),
        (
            lambda one: T5Tokenizer(one.folder).encode("a"),
            "expected tokenizer.json in it, got no such file. Fix: give",
        ),
        (lambda one: one.encode(3), "text=3: expected a text, got int"),
        (lambda one: one.encode_batch(["a", "\udc00"]), r"text\[1\]=.*expected UTF-8"),
        (lambda one: one.check(np.zeros((2, 5), int)), r"text=int64\[2, 5\]: expected texts or their ids"),
        (lambda one: one.check(np.full((1, 77), 9999)), "text=9999: expected ids from 0 to"),
        (
            lambda one: one.check(np.full((1, 77), BEGIN)),
            r"text\[0\]=.*expected windows of 77 ids with a begin",
        ),
        (
            lambda one: one.check(np.full((1, 77), END)),
            r"text\[0\]=.*expected windows of 77 ids with a begin",
        ),
    ],
)
def test_invalid_texts_are_refused(folders, make, message):
    with pytest.raises(UserError, match=message):
        make(ClipTokenizer(folders["sd1"]))
