"""Captions of any characters, from files of every kind to ids and back: nothing changes, and losses are reported."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.errors import UserError

ODD = {
    "emoji": "\U0001f469\u200d\U0001f680 \U0001f1e8\U0001f1ed \u2764\ufe0f",
    "accent": "e\u0301",  # two ways of writing one letter, which stay two
    "letter": "\u00e9",
    "marks": "Z\u0351\u036b\u0343\u0363 \u0939\u093f\u0928\u094d\u0926\u0940",
    "right to left": "\u05d7\u05ea\u05d5\u05dc \u202eabc\u202c \u0642\u0637\u0629",
    "NUL": "a\0b",
    "separators": "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei",  # no ends of lines of a file
    "invisible": "\u200bx\ufeffy\u00a0z",
    "syntax": 'he said: "a, b"; {"text": 1} \\n \\u0041 %s </s><pad>',
    "last": "\U0010ffff\uffff\ufffd",
}
INSIDE = ODD | {"lines": "first\nsecond\r\nthird", "spaces": "  both sides\t"}
FILES = {key: f"{i:02}.png" for i, key in enumerate(INSIDE)}


@pytest.fixture
def images(tmp_path):
    for file in FILES.values():
        Image.new("L", (2, 2)).save(tmp_path / file)
    return tmp_path


def captions(folder, name):
    """The input of the model for each file: ids, decoded to text."""
    source = ImageFolder(str(folder), 2, label=None, captions=name)
    examples, tokenize = source.open(), Tokenize(ByteTokenizer(128))
    rng = np.random.default_rng(0)
    found = [tokenize(examples[i], rng)["text"] for i in range(len(examples))]
    return {file: tokenize.tokenizer.decode(ids) for file, ids in zip(examples.files, found, strict=True)}


def expected(texts=INSIDE):
    return {FILES[key]: text for key, text in texts.items()}


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_jsonl_keeps_every_character(images, ascii_only, encoding, end):
    rows = [{"file_name": FILES[key], "text": text} for key, text in INSIDE.items()]
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    (images / "x.jsonl").write_bytes((end.join(lines) + end).encode(encoding))
    assert captions(images, "x.jsonl") == expected()


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_keeps_every_character(images, quoting, encoding, end):
    with open(images / "x.csv", "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, quoting=quoting, lineterminator=end)
        writer.writerows([("file_name", "text"), *((FILES[key], text) for key, text in INSIDE.items())])
    assert captions(images, "x.csv") == expected()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n \n"])
def test_a_text_file_keeps_every_character_of_a_line(images, encoding, end):
    for key, file in FILES.items():
        text = ODD.get(key, "plain")
        (images / file).with_suffix(".txt").write_bytes((text + end).encode(encoding))
    assert captions(images, "txt") == {file: ODD.get(key, "plain") for key, file in FILES.items()}


def test_several_lines_of_a_text_file_are_several_captions(images):
    for file in FILES.values():
        (images / file).with_suffix(".txt").write_bytes("\ufeff one \r\n\r\ntwo\u2028half\nthree".encode())
    examples = ImageFolder(str(images), 2, label=None, captions="txt").open()
    assert examples[0]["text"].tolist() == ["one", "two\u2028half", "three"]


def test_a_long_caption_is_cut_with_a_warning(images, caplog):
    long = "a cat " * 40_000 + "\u4e09"
    with open(images / "x.jsonl", "w", encoding="utf-8") as file:
        for key, name in FILES.items():
            text = long if key == "emoji" else "short"
            print(json.dumps({"file_name": name, "text": text}), file=file)
    tokenizer = ByteTokenizer(131)  # a length of no other test: a process reports once
    pipeline = Pipeline(
        ImageFolder(str(images), 2, label=None, captions="x.jsonl"),
        conditions=(Tokenize(tokenizer),),
        threads=0,
    )
    texts = [tokenizer.decode(ids) for ids in pipeline.all()["text"]]
    assert texts == [long[:130], *["short"] * (len(FILES) - 1)]
    (record,) = caplog.records
    assert "a text of 240003 bytes was cut to 130, since length=131: 'a cat a cat" in record.getMessage()
    assert "lost 't a cat" in record.getMessage()
    assert len(record.getMessage()) < 300


def table(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    ImageFolder(str(folder), 2, label=None, captions=name).open()


@pytest.mark.parametrize(
    ("content", "phrases"),
    [
        (
            "file_name,text\n00.png,a cat, sitting\n",
            ("x.csv:2", "the 2 fields of the header, got 3 fields", "quotes"),
        ),
        ("file_name,text\n00.png\n", ("x.csv:2", "expected a caption that is not empty")),
        ('file_name,text\n00.png,""\n', ("x.csv:2", "expected a caption that is not empty")),
        ("file_name,text\n00.png, \u3000\u2028\n", ("x.csv:2", "expected a caption that is not empty")),
        ("00.png,a cat\n01.png,a dog\n", ("x.csv:2", "expected a column file_name", "00.png, a cat")),
        ("file_name;text\n00.png;a cat\n", ("x.csv:2", "expected a column file_name", "file_name;text")),
        ('file_name,text\n00.png,"never closed\n' + "x" * 140_000, ("x.csv:", "field limit", "quote")),
        (
            'file_name,text\n00.png,"never closed\n01.png,a dog\n',
            ("x.csv:2", "expected CSV", "close all quotes"),
        ),
        ('file_name,te"xt\n00.png,"a" cat\n', ("x.csv:2", "expected CSV", "close all quotes")),
        ('file_name,"text" \n00.png,a cat\n', ("x.csv:1", "expected CSV", "close all quotes")),
        ('file_name,text\n00.png,a\n01.png,"a\nb"\n02.png,"a" cat\n', ("x.csv:5", "expected CSV")),
        ('file_name,text\n00.png,"a" cat\n', ("x.csv:2", "expected CSV", "close all quotes")),
        ("file_name,text\nabsent.png,a\n", ("x.csv:2", "expected the path of an image, got 'absent.png'")),
        ("file_name,text\n\n\n", ("none for 12 of 12",)),
        ("", ("none for 12 of 12",)),
        ("file_name,text\n00.png,caf\u00e9\n".encode("latin-1"), ("x.csv", "expected UTF-8")),
        ("file_name,text\n00.png,a\n".encode("utf-16"), ("x.csv", "other bytes at byte 0")),
    ],
)
def test_an_invalid_csv_is_refused_with_its_line(images, content, phrases):
    with pytest.raises(UserError) as error:
        table(images, "x.csv", content)
    for phrase in phrases:
        assert phrase in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "00.png", "text": "cut off', "expected JSON"),
        ('{"file_name": "00.png", "text": "a\tb"}', "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("null", "expected a JSON object, got NoneType"),
        ('{"file_name": "00.png", "text": ""}', "expected a caption that is not empty"),
        ('{"file_name": "00.png", "text": null}', "expected a caption that is not empty"),
        ('{"file_name": "00.png", "text": ["a", ""]}', "expected a caption that is not empty"),
        ('{"file_name": "00.png", "text": [["a"]]}', "expected a caption that is not empty"),
        ('{"file_name": ["00.png"], "text": "a"}', "expected the path of an image, got ['00.png']"),
        ('{"file_name": null, "text": "a"}', "expected the path of an image, got None"),
    ],
)
def test_a_bad_line_is_named_by_its_number(images, line, message):
    """The caption before it has characters that `str.splitlines` takes for line ends."""
    good = json.dumps({"file_name": "00.png", "text": "a\u2028b\u0085c"}, ensure_ascii=False)
    with pytest.raises(UserError) as error:
        table(images, "x.jsonl", f"{good}\n\n{line}\n")
    assert "'x.jsonl:3'" in str(error.value)
    assert message in str(error.value)


def test_half_a_character_is_an_error_with_its_example(images):
    for i, file in enumerate(FILES.values()):
        text = "a\\ud83d" if i == 3 else "a"
        with open(images / "x.jsonl", "a") as table:
            print(f'{{"file_name": "{file}", "text": "{text}"}}', file=table)
    source = ImageFolder(str(images), 2, label=None, captions="x.jsonl")
    with pytest.raises(
        UserError, match=r"index=3: text=.*got U\+D83D, half of a surrogate pair, as character 1"
    ):
        Pipeline(source, conditions=(Tokenize(ByteTokenizer(8)),), threads=0).all()
