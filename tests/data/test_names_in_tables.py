"""Tables may write the names of files as other systems do, and texts of all kinds may have a byte order mark."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from jaxdiff.cli import values
from jaxdiff.conditioning.vector import ClassLabel
from jaxdiff.data.folder import ImageFolder
from jaxdiff.errors import UserError

FILES = ("sub/a.png", "sub/b c.png", "sub/caf\u00e9.png")


@pytest.fixture
def images(tmp_path):
    (tmp_path / "sub").mkdir()
    for file in FILES:
        Image.new("L", (2, 2)).save(tmp_path / file)
    return tmp_path


def texts(root, first, table="x.jsonl"):
    """The captions of a table that writes the first file in another way."""
    names = [first, *FILES[1:]] if first is not None else FILES
    rows = [{"file_name": name, "text": str(i)} for i, name in enumerate(names)]
    (root / table).write_text("\n".join(map(json.dumps, rows)))
    examples = ImageFolder(str(root), 2, label=None, captions=table).open()
    return {file: str(examples[i]["text"]) for i, file in enumerate(examples.files)}


@pytest.mark.parametrize(
    "name",
    ["./sub/a.png", "sub\\a.png", ".\\sub\\a.png", "sub//a.png", "sub/../sub/a.png", "{root}/sub/a.png",
     "file://{root}/sub/a.png", "sub/%61.png"],
)  # fmt: skip
def test_other_ways_to_write_a_name(images, name):
    assert texts(images, name.format(root=images))["sub/a.png"] == "0"


def test_names_below_a_linked_folder(images):
    (images.parent / "link").symlink_to(images, target_is_directory=True)
    assert texts(images.parent / "link", f"{images}/sub/a.png")["sub/a.png"] == "0"


def test_forms_of_unicode_and_percent_signs(images):
    rows = [("sub/a.png", "0"), ("sub/b%20c.png", "1"), ("sub/cafe\u0301.png", "2")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (images / "x.jsonl").write_text("\n".join(lines))
    examples = ImageFolder(str(images), 2, label=None, captions="x.jsonl").open()
    assert [str(examples[i]["text"]) for i in range(3)] == ["0", "1", "2"]


def test_an_exact_name_has_precedence_and_two_fits_are_refused(images):
    for name in ("sub\\a.png", "sub/cafe\u0301.png"):
        Image.new("L", (2, 2)).save(images / name)
    rows = [{"file_name": name, "text": name} for name in ("sub\\a.png", *FILES, "sub/cafe\u0301.png")]
    (images / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = ImageFolder(str(images), 2, label=None, captions="x.jsonl").open()
    assert all(str(examples[i]["text"]) == file for i, file in enumerate(examples.files))
    with pytest.raises(UserError, match=r"'x.jsonl:1': expected the path of one image, got 'sub.*' and 'sub"):
        texts(images, "./sub/caf\u00e9.png")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.png", r"did you mean sub/a\.png\?"),
        ("C:\\data\\sub\\a.png", r"did you mean sub/a\.png\?"),
        ("sub/a.jpg", r"did you mean sub/a\.png\?"),
        ("../secret", r"names are relative to the folder, such as sub/a\.png"),
    ],
)
def test_an_unknown_name_comes_with_the_closest(images, name, advice):
    with pytest.raises(
        UserError, match=rf"'x.jsonl:1': expected the path of an image, got .*Fix: .*{advice}"
    ):
        texts(images, name)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_text_anywhere(images, mark):
    row = '{"file_name": "%s", "text": "x"}'
    (images / "t.jsonl").write_bytes(mark + "\n".join(row % file for file in FILES).encode())
    (images / "t.csv").write_bytes(
        mark + "\n".join(["file_name,text", *(f"{file},x" for file in FILES)]).encode()
    )
    for file in FILES:
        (images / file).with_suffix(".txt").write_bytes(mark + b"x\n")
    for captions in ("t.jsonl", "t.csv", "txt"):
        assert str(ImageFolder(str(images), 2, label=None, captions=captions).open()[0]["text"]) == "x"
    (images / "c.jsonl").write_bytes(mark + b'{"label": 1}\r\n{"label": 0}\n')
    found = values.lines("--conditions", str(images / "c.jsonl"), {"label": ClassLabel(2, 4)})
    assert found == {"label": [1, 0]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1"])
def test_other_encodings_are_named(images, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    content = (mark + '{"label": 1, "x": "\u00e9"}').encode(encoding)
    (images / "x.jsonl").write_bytes(content)
    expected = "expected UTF-8, got other bytes at byte .*" + ("UTF-16" if "16" in encoding else "Fix")
    with pytest.raises(UserError, match=f"captions='x.jsonl': {expected}"):
        ImageFolder(str(images), 2, label=None, captions="x.jsonl").open()
    with pytest.raises(UserError, match=f"--conditions=.*: {expected}"):
        values.lines("--conditions", str(images / "x.jsonl"), {"label": ClassLabel(2, 4)})


def test_nested_brackets_are_one_line(images):
    (images / "x.jsonl").write_text('{"label": 1}\n' + "[" * 100_000)
    with pytest.raises(UserError, match=r"line 2: expected JSON, got too many nested brackets") as error:
        values.lines("--conditions", str(images / "x.jsonl"), {"label": ClassLabel(2, 4)})
    assert len(str(error.value)) < 300
    with pytest.raises(UserError, match="too many nested brackets"):
        values.values("--condition", ["label=" + "[" * 100_000], {"label": ClassLabel(2, 4)})


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "kind"), [(os.mkdir, "a folder"), (os.mkfifo, "a pipe or a device")])
def test_what_is_no_file_is_named_and_not_opened(images, make, kind):
    make(images / "sub" / "a.txt")
    with pytest.raises(UserError, match=rf"captions='a.txt': expected a text file, got {kind}"):
        ImageFolder(str(images), 2, label=None, captions="txt").open()
    make(images / "x.jsonl")
    with pytest.raises(UserError, match=f"expected a file in the folder, got {kind}"):
        ImageFolder(str(images), 2, label=None, captions="x.jsonl").open()
    assert np.all(ImageFolder(str(images), 2, label=None).open()[0]["image"] == 0)
