"""Image folders: classes, splits, captions of files and tables, and errors that name unreadable files."""

import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.errors import UserError
from tests.data.pixels import noise


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images, 8 x 8 pixels, in names that sort differently as text and as paths."""
    for name in ("cat", "cat.2"):
        (tmp_path / name).mkdir()
        for i in (0, 1, 2, 10):
            Image.fromarray(noise(8, 8, seed=i + 100 * len(name))).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_classes_are_subfolders_in_the_order_of_their_names(folder):
    examples = ImageFolder(str(folder), 8).open()
    assert examples.classes == ("cat", "cat.2")
    assert examples.num_classes == 2
    assert examples.image_shape == (8, 8, 3)
    assert examples.files == tuple(f"{c}/{i}.png" for c in ("cat", "cat.2") for i in ("0", "1", "10", "2"))
    for i, file in enumerate(examples.files):
        with Image.open(folder / file) as opened:
            stored = np.asarray(opened)
        example = examples[i]
        assert np.array_equal(example["image"], stored)
        assert (example["index"], example["label"]) == (i, i // 4)
        assert {name: value.dtype for name, value in example.items()} == {
            "image": np.uint8,
            "index": np.int32,
            "label": np.int32,
        }


def test_without_classes_there_are_no_labels_and_files_may_lie_anywhere(folder):
    Image.new("RGB", (8, 8)).save(folder / "loose.PNG")
    (folder / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(folder / ".hidden" / "a.png")
    Image.new("RGB", (8, 8)).save(folder / "cat" / "._a.png")
    (folder / "notes.txt").write_text("no image")
    examples = ImageFolder(str(folder), 8, label=None).open()
    assert len(examples) == 9
    assert set(examples[0]) == {"image", "index"}
    with pytest.raises(UserError, match=r"got loose\.PNG outside of them"):
        ImageFolder(str(folder), 8).open()


def test_splits_are_a_partition_that_new_files_do_not_disturb(folder):
    (folder / "dog").mkdir()
    Image.new("L", (1, 1)).save(folder / "dog" / "0.png")
    for i in range(300):
        Image.new("L", (1, 1)).save(folder / "cat" / f"x{i}.png")
    block = {
        split: ImageFolder(str(folder), 8, split=split, test_fraction=0.3)
        for split in ("train", "test", "all")
    }
    before = {split: one.open() for split, one in block.items()}
    train, test = set(before["train"].files), set(before["test"].files)
    assert not train & test
    assert train | test == set(before["all"].files)
    assert 0.2 < len(test) / 309 < 0.4
    for i in range(50):
        Image.new("L", (1, 1)).save(folder / "cat" / f"a{i}.png")
    after = {split: set(one.open().files) for split, one in block.items()}
    assert train <= after["train"]
    assert test <= after["test"]
    # Although the only dog is in one of them.
    assert before["train"].classes == before["test"].classes == ("cat", "cat.2", "dog")


def test_fingerprint_depends_on_names_and_sizes(folder):
    def found():
        return ImageFolder(str(folder), 8).fingerprint()["sha256"]

    block = ImageFolder(str(folder), 8)
    assert block.fingerprint() == {"name": str(folder), "split": "all", "length": 8, "sha256": found()}
    first = found()
    (folder / "cat" / "0.png").rename(folder / "cat" / "3.png")
    second = found()
    with open(folder / "cat" / "3.png", "ab") as file:
        file.write(b"0")
    assert len({first, second, found()}) == 3


def bomb(width, height):
    """A PNG of a few bytes whose header declares many pixels."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def cut(fraction, kind):
    file = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(file, kind)
    return file.getvalue()[: int(len(file.getvalue()) * fraction)]


BROKEN = {
    "empty": b"",
    "text": b"this is no image",
    "header only": cut(0.005, "PNG"),
    "cut PNG": cut(0.5, "PNG"),
    "cut JPEG": cut(0.5, "JPEG"),
    "cut WebP": cut(0.5, "WEBP"),
    "other format": b"BM" + bytes(60),
    "large": bomb(20_000, 4_001),
    "huge": bomb(60_000, 60_000),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named_or_skipped_and_counted(folder, content):
    (folder / "cat" / "1.png").write_bytes(content)
    examples = ImageFolder(str(folder), 8).open()
    with pytest.raises(UserError, match=r"cat/1\.png.*Fix: .*broken='skip'") as error:
        examples[1]
    assert len(str(error.value).splitlines()) == 1
    skipping = ImageFolder(str(folder), 8, broken="skip", max_broken=0.2).open()
    assert np.array_equal(skipping[1]["image"], examples[2]["image"])
    assert skipping[1]["index"] == 2, "the index is that of the returned file"
    assert skipping.broken == {"cat/1.png"}
    with pytest.raises(UserError, match=r"max_broken=0\.1: .*got 1 of 8 files.*cat/1\.png"):
        ImageFolder(str(folder), 8, broken="skip", max_broken=0.1).open()[1]


def test_an_error_if_all_files_are_unreadable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match="2 of 2 files"):
        ImageFolder(str(tmp_path), 8, label=None, broken="skip", max_broken=1.0).open()[0]


def test_the_last_file_is_followed_by_the_first(folder):
    (folder / "cat.2" / "2.png").write_bytes(b"")
    examples = ImageFolder(str(folder), 8, broken="skip", max_broken=0.2).open()
    assert examples[7]["index"] == 0


def table(folder, name, rows):
    if name.endswith(".jsonl"):
        (folder / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    else:
        lines = ["text,other,file_name", *(f'"{row["text"]}",1,{row["file_name"]}' for row in rows)]
        (folder / name).write_text("\n".join(lines), encoding="utf-8-sig")


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.csv"])
def test_captions_of_a_table(folder, name):
    files = ImageFolder(str(folder), 8).open().files
    rows = [{"file_name": file, "text": f"a cat, {i} \u4e09"} for i, file in enumerate(reversed(files))]
    table(folder, name, [*rows, {"file_name": files[0], "text": "another"}])
    examples = ImageFolder(str(folder), 8, captions=name).open()
    assert str(examples[5]["text"]) == "a cat, 2 \u4e09"
    assert examples[0]["text"].tolist() == ["a cat, 7 \u4e09", "another"]


def test_captions_in_text_files_become_ids(folder):
    for file in ImageFolder(str(folder), 8).open().files:
        (folder / file).with_suffix(".txt").write_text(f"{file[4:6]}\n\n  second \n")
    source = ImageFolder(str(folder), 8, captions="txt")
    assert source.open()[7]["text"].tolist() == ["2/", "second"]
    batch = next(Pipeline(source, conditions=(Tokenize(ByteTokenizer(10)),), threads=0).batches(8, seed=0))
    assert {ByteTokenizer(10).decode(row) for row in batch["text"]} > {"second"}


def test_lists_in_a_table_are_several_captions(folder):
    files = ImageFolder(str(folder), 8).open().files
    table(folder, "x.jsonl", [{"image": file, "captions": ["one", "two"]} for file in files])
    source = ImageFolder(str(folder), 8, captions="x.jsonl", file_column="image", text_column="captions")
    assert source.open()[3]["text"].tolist() == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"file_name": "cat/0.png", "text": "a"}\n',
            "got none for 7 of 8, such as cat/1.png",
        ),
        (
            '\n{"file_name": "cat/0.png"}\n',
            "'x.jsonl:2': expected a column text, got file_name. Fix: use one of file_name",
        ),
        ('{"file_name": "../secret.png", "text": "a"}', "expected the path of an image, got '../secret.png'"),
        (
            '{"file_name": "cat/0.png", "text": " "}',
            "'x.jsonl:1': expected a caption that is not empty, got ' '",
        ),
        ('{"file_name": "cat/0.png", "text": 3}', "got 3"),
        ('{"file_name": ', "'x.jsonl:1': expected JSON"),
        ("[]", "expected a JSON object, got list"),
        (b'{"text": "\xff"}', "expected UTF-8, got other bytes at byte 10"),
        (None, "got no such file"),
    ],
)
def test_missing_captions_are_named(folder, content, message):
    if content is not None:
        (folder / "x.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        ImageFolder(str(folder), 8, captions="x.jsonl").open()
    assert message in str(error.value)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="expected a folder of images, got no such path"):
        ImageFolder(str(tmp_path / "x"), 8).open()
    with pytest.raises(UserError, match=r"expected .png, .*, got none"):
        ImageFolder(str(tmp_path), 8).open()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0), ("test_fraction", 1.5), ("max_broken", -0.1), ("background", (0, 0, 256)), ("max_pixels", 0),
        ("captions", "captions.xml"),
    ],
)  # fmt: skip
def test_fields_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        ImageFolder(**{"path": "x", "size": 8, field: value})


def test_blocks_survive_json():
    written = spec(ImageFolder, path="x", size=64, captions="txt", background=(0, 0, 0), fit="lanczos")
    expected = ImageFolder("x", 64, captions="txt", background=(0, 0, 0), fit="lanczos")
    assert build(from_json(to_json(written)), packages=("jaxdiff",)) == expected
