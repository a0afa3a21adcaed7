"""Arbitrary bytes in a file give weights or one `UserError` with a fix. No code of the file runs."""

import json
import os
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.tensors import read_tensors
from tests.interop.hostile import attempt, refused
from tests.interop.published import (
    GOLDENS,
    SIX,
    archive,
    mapping,
    number,
    program,
    rechecked,
    storage,
    tensor,
    text,
)

pytestmark = pytest.mark.usefixtures("untyped", "nothing_runs")

MUTATIONS = 600
"""Of each format."""


def mutated(data, choice):
    """One to three changes: bits flipped, bytes put in, taken out, repeated or set to an extreme, the end cut off."""
    data = bytearray(data)
    for _ in range(choice.choice([1, 1, 2, 3])):
        at = choice.randrange(len(data))
        match choice.randrange(6):
            case 0:
                data[at] ^= 1 << choice.randrange(8)
            case 1:
                data[at:at] = choice.randbytes(choice.choice([1, 4, 50]))
            case 2:
                del data[at : at + choice.choice([1, 4, 50])]
            case 3:
                data[at:at] = data[at : at + choice.randrange(1, 100)]
            case 4:
                width = choice.choice([1, 2, 4, 8])
                data[at : at + width] = choice.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * width
            case 5:
                del data[at:]
        if not data:
            break
    return bytes(data)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    write_safetensors(
        folder / "a", {"a.weight": np.ones((2, 3), np.float32), "b": np.ones(2, np.float16)}, {"x": "y"}
    )
    names = {"zip": "interop_zip.pt", "legacy": "interop_legacy.pt", "edm": "interop_edm.pkl"}
    found = {kind: (GOLDENS / name).read_bytes() for kind, name in names.items()}
    index = {"metadata": {"total": 1}, "weight_map": {"a.weight": "a", "b": "a"}}
    return found | {"safetensors": (folder / "a").read_bytes(), "index": json.dumps(index).encode()}


@pytest.mark.spread(2)
@pytest.mark.parametrize("kind", ["zip", "zip, by a villain", "legacy", "edm", "safetensors", "index"])
def test_changed_files_are_read_or_refused(kind, samples, tmp_path):
    choice, good = random.Random(kind), samples[kind.partition(",")[0]]
    (tmp_path / "a").write_bytes(samples["safetensors"])
    path, refusals = tmp_path / "b", 0
    for _ in range(MUTATIONS):
        data = mutated(good, choice)
        path.write_bytes(rechecked(data) if "villain" in kind else data)
        refusals += attempt(path) is None
    assert MUTATIONS / 10 < refusals <= MUTATIONS


@pytest.mark.spread(3)
@pytest.mark.parametrize("kind", ["zip", "legacy", "edm", "safetensors", "index"])
def test_a_file_cut_off_anywhere_is_refused(kind, samples, tmp_path):
    """A partial download is never accepted as complete."""
    good, path = samples[kind], tmp_path / "a"
    for end in range(0, len(good), 1 + len(good) // 200):
        path.write_bytes(good[:end])
        assert attempt(path) is None
        with pytest.raises(UserError):
            read_tensors(path)  # at once, and not only when a tensor is looked at


def test_a_bit_flipped_in_a_zip_archive_never_changes_a_number(samples, tmp_path):
    """The archive has checksums; the other formats have none."""
    good, path, choice = samples["zip"], tmp_path / "a", random.Random(0)
    path.write_bytes(good)
    truth = attempt(path)
    for _ in range(200):
        data = bytearray(good)
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        path.write_bytes(data)
        read = attempt(path)
        assert read is None or all(np.array_equal(read[name], truth[name]) for name in truth)


def test_a_zip_bomb(tmp_path):
    """Nothing is ever unpacked."""
    files = {"data/0": bytes(50_000_000)}
    (tmp_path / "a").write_bytes(archive(mapping(text("w"), tensor()), files, zipfile.ZIP_DEFLATED))
    tracemalloc.start()
    refused(tmp_path / "a", "compressed")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def entry(data, name):
    """Where an entry of the archive's list begins."""
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    return at


def place(data, at):
    """Where the file of an entry lies."""
    return struct.unpack_from("<I", data, at + 42)[0]


LYING = {
    "overlapping": lambda data, at: struct.pack_into(
        "<I", data, entry(data, "archive/data/1") + 42, place(data, at)
    ),
    "too long": lambda data, at: struct.pack_into("<II", data, at + 20, 2000, 2000),
    "of other lengths": lambda data, at: struct.pack_into("<I", data, at + 20, 10),
    "of gigabytes": lambda data, at: struct.pack_into("<II", data, at + 20, 2**31, 2**31),
    "outside": lambda data, at: struct.pack_into("<I", data, at + 42, 2**31 - 1),
    "encrypted": lambda data, at: struct.pack_into("<H", data, at + 8, 1),
    "of an unknown method": lambda data, at: struct.pack_into("<H", data, at + 10, 97),
    "of a later version": lambda data, at: struct.pack_into("<H", data, at + 6, 255),
    "twice": lambda data, at: data.__setitem__(entry(data, "archive/data/2") + 46 + 13, ord("1")),
    "with another checksum": lambda data, at: struct.pack_into("<I", data, at + 16, 7),
    "not where it says": lambda data, at: struct.pack_into("<I", data, data.index(b"PK\x03\x04"), 0),
    "with a local name of 60 kB": lambda data, at: struct.pack_into(
        "<H", data, data.rindex(b"PK\x03\x04") + 26, 60_000
    ),
}


@pytest.mark.parametrize("case", LYING)
def test_an_inconsistent_zip_archive(case, tmp_path):
    data = bytearray(archive(mapping(text("w"), tensor()), {"data/1": SIX, "data/2": SIX, "data/0": SIX}))
    LYING[case](data, entry(data, "archive/data/0"))
    (tmp_path / "a").write_bytes(data)
    refused(tmp_path / "a")


def test_an_entry_that_reaches_into_the_list_of_entries(tmp_path):
    """With all lengths and checksums in agreement."""
    data = bytearray(archive(mapping(text("w"), tensor(of=storage(number(11))))))
    struct.pack_into("<II", data, entry(data, "archive/data/0") + 20, 44, 44)
    (tmp_path / "a").write_bytes(rechecked(bytes(data)))
    refused(tmp_path / "a", "overlap, repeat or exceed")


def test_other_archives(tmp_path):
    for case, names in {"none": ["x"], "two": ["a/data.pkl", "b/data.pkl"], "nothing": []}.items():
        with zipfile.ZipFile(tmp_path / case, "w") as made:
            for name in names:
                made.writestr(name, program(pickle.NONE))
        refused(tmp_path / case, "torch.save")
    (tmp_path / "big").write_bytes(
        archive(mapping(text("w"), tensor()), {"byteorder": b"big", "data/0": SIX})
    )
    refused(tmp_path / "big", "byte order")


def test_an_archive_with_a_list_of_a_million_files(tmp_path):
    """The list itself is measured before it is read."""
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, 5_000_000, 0, 0)
    (tmp_path / "a").write_bytes(b"PK\x01\x02" + bytes(5_000_000 - 4) + end)
    tracemalloc.start()
    refused(tmp_path / "a", "expected an archive directory of at most")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def header(table, data=b"", length=None):
    content = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def one(start=0, end=24, shape=(2, 3), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HEADERS = {
    "overlapping": header({"a": one(), "b": one()}, SIX),
    "overlapping by a byte": header({"a": one(0, 24), "b": one(23, 47)}, SIX * 2),
    "a hole": header({"a": one(4, 28)}, bytes(28)),
    "beyond the end": header({"a": one()}, SIX[:-1]),
    "bytes left over": header({"a": one()}, SIX + b"x"),
    "negative": header({"a": one(-24, 0)}, SIX),
    "backwards": header({"a": one(24, 0)}, SIX),
    "of 65 bits": header({"a": one(0, 2**65)}, SIX),
    "another shape": header({"a": one(shape=(2, 4))}, SIX),
    "a shape that overflows": header({"a": one(shape=(2**62, 2**62))}, SIX),
    "an empty shape of 64 bits": header({"a": one(0, 0, (0, 2**63))}),
    "a negative shape": header({"a": one(shape=(-2, -3))}, SIX),
    "an unknown dtype": header({"a": one(dtype="F7")}, SIX),
    "a giant header": header({"a": one()}, SIX, 2**39),
    "a header of 9 MB": header(json.dumps({"a": one()}).encode() + b" " * 9_000_000, SIX),
    "a header beyond the end": header({"a": one()}, b"", 500),
    "no JSON": header(b"{" * 100, SIX),
    "JSON a thousand levels deep": header(b'{"a":' + b"[" * 100_000, SIX),
    "a list": header([one()], SIX),
    "metadata that is no text": header({"__metadata__": {"a": 1}, "a": one()}, SIX),
    "no entries": header(b"{", b""),
}


@pytest.mark.parametrize("case", HEADERS)
def test_inconsistent_safetensors(case, tmp_path):
    (tmp_path / "a").write_bytes(HEADERS[case])
    refused(tmp_path / "a")


INDICES = {
    "above": {"a": "../a"},
    "absolute": {"a": "/etc/passwd"},
    "a folder": {"a": "."},
    "nothing": {"a": ""},
    "with a backslash": {"a": "..\\a"},
    "with a zero": {"a": "a\0b"},
    "missing": {"a": "other.safetensors"},
    "itself": {"a": "index.json"},
    "a tensor that is not there": {"b": "a"},
    "no text": {"a": 3},
    "no tensors": {},
    "a list": [["a", "a"]],
}


@pytest.mark.parametrize("case", INDICES)
def test_an_invalid_index(case, tmp_path):
    (tmp_path / "deep").mkdir()
    for folder in (tmp_path, tmp_path / "deep"):
        write_safetensors(folder / "a", {"a": np.ones(2, np.float32)})
    path = tmp_path / "deep" / "index.json"
    path.write_text(json.dumps({"weight_map": INDICES[case]}))
    messages = {
        "above": "expected files next to",
        "absolute": "expected files next to",
        "a tensor that is not there": "lists, got no such tensor",
    }
    refused(path, messages.get(case, "Fix: "))


def test_text_that_is_not_an_index(tmp_path):
    for case in (
        "{",
        "{}",
        '{"weight_map": 3}',
        "[" * 100_000,
        "{" * 100_000,
        '{"a":' * 100_000,
        " " * 40 + "{}",
    ):
        (tmp_path / "a").write_text(case)
        refused(tmp_path / "a")
    (tmp_path / "a").write_bytes(b'{"weight_map": {"a": "' + bytes(17_000_000))
    refused(tmp_path / "a", "expected at most .* bytes of JSON")


def test_paths_that_are_not_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "expected a regular file")
    (tmp_path / "device").symlink_to("/dev/zero")
    refused(tmp_path / "device", "expected a regular file")
    (tmp_path / "circle").symlink_to("circle")
    refused(tmp_path / "circle", "symbolic links")
    (tmp_path / "nowhere").symlink_to("missing")
    refused(tmp_path / "nowhere", "No such file")
    refused(tmp_path / "missing", "No such file")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", "got an empty file")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "in folder/, got none")
    (tmp_path / "folder" / "model.safetensors").symlink_to("/dev/zero")
    refused(tmp_path / "folder", "expected a regular file")


def test_common_mistakes_are_named(tmp_path):
    (tmp_path / "a").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    refused(tmp_path / "a", "Git LFS")
    (tmp_path / "a").write_text("\n<!DOCTYPE html><title>404</title>")
    refused(tmp_path / "a", "a web page")
    (tmp_path / "a").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(tmp_path / "a", "a file that starts with")
