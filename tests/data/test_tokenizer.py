"""Tokenizers: nothing is lost except what does not fit, and that is reported."""

import copy
import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from jaxdiff import config
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import END, FIRST_BYTE, IDS, PAD, ByteTokenizer, Tokenize
from jaxdiff.errors import UserError

TEXTS = (
    "",
    "a red three",
    "a\0b\0",
    "</s><pad>",
    " line\nbreak\t",
    "e\u0301 \u00e9",  # the same letter, composed in two ways
    "\U0001f469\u200d\U0001f680\ufe0f \U0001f1e8\U0001f1ed",  # an astronaut and a flag
    "\u05e9\u05c1 \u0939\u093f\u0928\u094d\u0926\u0940 \u4e09 \ufeff\ufffd\uffff\U0010ffff",
)
MIXED = "a\u00e9\u4e09\U0001f680" * 2  # characters of one to four bytes
RNG = np.random.default_rng(0)
TOKENIZE = Tokenize(ByteTokenizer(8))


def test_every_character_of_unicode_survives():
    characters = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    size = 4096
    tokenizer = ByteTokenizer(4 * size + 1)
    for first in range(0, len(characters), size):
        text = "".join(characters[first : first + size])
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_are_bytes_and_three_then_an_end_then_padding():
    tokenizer = ByteTokenizer(64)
    for text in TEXTS:
        raw = text.encode()
        expected = [byte + 3 for byte in raw] + [1] + [0] * (63 - len(raw))
        for given in (text, raw, np.str_(text)):
            ids = tokenizer.encode(given)
            assert (ids.dtype, ids.tolist()) == (np.int32, expected)
        assert tokenizer.decode(ids) == text
    assert (PAD, END, FIRST_BYTE, IDS) == (0, 1, 3, 259)


def test_different_texts_have_different_ids():
    pairs = itertools.combinations(ByteTokenizer(64).encode_batch(TEXTS), 2)
    assert not any(np.array_equal(one, other) for one, other in pairs)
    assert not np.array_equal(*ByteTokenizer(8).encode_batch(["a", "a\0"]))


def test_ids_are_byt5s():
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.ByT5Tokenizer(), ByteTokenizer(64)
    for text in TEXTS:
        if "</s>" not in text:  # which ends a text there
            expected = theirs(text, padding="max_length", max_length=64, truncation=True).input_ids
            assert ours.encode(text).tolist() == expected


def test_a_long_text_loses_whole_characters_and_no_more_than_it_must():
    size = len(MIXED.encode())
    for length in range(2, size + 3):
        tokenizer = ByteTokenizer(length)
        ids = tokenizer.encode(MIXED)
        prefixes = [MIXED[:i] for i in range(len(MIXED) + 1)]
        expected = max((text for text in prefixes if len(text.encode()) < length), key=len)
        assert tokenizer.decode(ids) == expected
        assert ids.tolist().count(END) == 1


def test_the_first_cut_of_a_length_is_reported(caplog):
    length = 1009  # of no other test: a process reports once
    tokenizer, long = ByteTokenizer(length), "x" * (length - 3) + "\u4e09lives"
    tokenizer.encode("x" * (length - 1))
    assert not caplog.records
    for text in (long, "fits", long, long + long):
        tokenizer.encode(text)
        ByteTokenizer(length).encode(text)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    expected = f"a text of {length + 5} bytes was cut to {length - 3}, since length={length}: "
    assert record.getMessage().startswith(expected)
    assert "lost '\u4e09lives'" in record.getMessage()


def test_a_batch_is_its_texts():
    tokenizer = ByteTokenizer(64)
    batch = tokenizer.encode_batch(TEXTS)
    assert batch.shape == (len(TEXTS), 64)
    for text, row in zip(TEXTS, batch, strict=True):
        np.testing.assert_array_equal(row, tokenizer.encode(text))
    assert tokenizer.encode_batch([]).shape == (0, 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ByteTokenizer(1), "length=1: expected 2 or more"),
        (lambda: Tokenize(ByteTokenizer(0)), "length=0: "),
        (
            lambda: ByteTokenizer(8).encode("ab\ud83d!"),
            r"text='ab\\ud83d!': expected UTF-8, got U\+D83D, half of a surrogate pair, as character 2",
        ),
        (
            lambda: ByteTokenizer(8).encode(b"caf\xe9"),
            r"text=b'caf\\xe9': expected UTF-8, got another byte at 3",
        ),
        (lambda: ByteTokenizer(8).encode(b"\xed\xa0\xbd"), "got another byte at 0"),
        (
            lambda: ByteTokenizer(8).encode(b"x" * 90 + b"\xff"),
            r"text=b'x{40}'\.\.\.: expected UTF-8, got another byte at 90",
        ),
        (lambda: ByteTokenizer(8).encode_batch(["a", "\udc00"]), r"text\[1\]='\\udc00': .* as character 0"),
        (lambda: ByteTokenizer(8).decode(np.array([100, 2, 1])), "ids=2: expected the id of a byte"),
        (lambda: ByteTokenizer(8).decode(np.array([259])), "ids=259: "),
        (lambda: ByteTokenizer(8).decode(np.array([0xE9 + 3, 1])), "ids=b'.xe9': expected UTF-8"),
        (lambda: TOKENIZE({"text": b"\xff", "index": 7}, RNG), r"index=7: text=b'\\xff': expected UTF-8"),
        (lambda: TOKENIZE({"text": 3, "index": 7}, RNG), "index=7: text=3: expected a text, got int"),
        (
            lambda: TOKENIZE({"text": [], "index": 7}, RNG),
            r"index=7: text=\[\]: expected a caption, got none",
        ),
        (lambda: TOKENIZE({"image": 0, "index": 7}, RNG), "field='text': .* Fix: use one of image, index"),
    ],
)
def test_invalid_texts_raise(make, message):
    with pytest.raises(UserError, match=message):
        make()


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Images with captions as array_record files have them: bytes, alone or in a list."""

    image_shape = (2, 2, 1)
    num_classes = None

    def open(self):
        return self

    def __len__(self):
        return 4

    def __getitem__(self, i):
        image = np.full(self.image_shape, i, np.uint8)
        captions = [f"{i}{letter}".encode() for letter in "abc"]
        return {"image": image, "index": np.int32(i), "text": captions[0], "captions": captions}


def test_batches_have_the_ids_of_one_caption():
    transforms = Tokenize(ByteTokenizer(5)), Tokenize(ByteTokenizer(4), field="captions")
    pipeline = Pipeline(Captioned(), transforms=transforms)
    batch, again = (next(pipeline.batches(64, seed)) for seed in (0, 0))
    assert {name: batch[name].dtype.name for name in ("text", "captions")} == dict.fromkeys(
        ("text", "captions"), "int32"
    )
    texts = [ByteTokenizer(5).decode(row) for row in batch["text"]]
    assert texts == [f"{i}a" for i in batch["index"]]
    captions = [ByteTokenizer(4).decode(row) for row in batch["captions"]]
    assert {caption[0] for caption in captions} == set("0123")
    assert all(int(caption[0]) == i for caption, i in zip(captions, batch["index"], strict=True))
    assert {caption[1] for caption in captions} == set("abc")
    np.testing.assert_array_equal(batch["captions"], again["captions"])


def test_arrays_of_strings_are_texts_too():
    example = {"text": np.array(["ab", "ab"]), "index": np.int32(0)}
    for text in (example["text"], np.array("ab"), np.array(b"ab", object)):
        ids = Tokenize(ByteTokenizer(5))({**example, "text": text}, RNG)["text"]
        assert ids.tolist() == [100, 101, 1, 0, 0]


def test_a_transform_is_a_plain_block():
    one = Tokenize(ByteTokenizer(3))
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), config.build(config.describe(one))):
        assert other == one
        assert hash(other) == hash(one)


def test_rows_of_ids_are_checked():
    tokenizer = ByteTokenizer(6)
    tokenizer.check(tokenizer.encode_batch(["", "abc", "longer"]))
    for ids, message in {
        (100, 1, 0, 0, 0, 300): "text=300: expected ids from 0 to 258",
        (100, 1, 1, 0, 0, 0): r"text\[0\]=.*expected one end",
        (100, 0, 1, 0, 0, 0): r"text\[0\]=.*expected one end and then padding",
        (100, 1): r"text=int64\[1, 2\]: expected texts or their ids",
    }.items():
        with pytest.raises(UserError, match=message):
            tokenizer.check(np.array([ids]))
