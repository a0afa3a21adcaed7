"""PyTorch files in three formats, read without PyTorch.

* ``torch.save`` since 1.6: a zip archive with one pickle and a raw file for each storage.
* ``torch.save`` before 1.6: a sequence of pickles, the fourth of which is the object, then the storages.
* ``pickle.dump`` of modules (EDM, EDM2): one pickle, in which each storage is bytes of the second format.

The result is the object as `unpickling` reads it: plain containers, `Tensor`, `Inert`.
"""

import functools
import io
import os
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from jaxdiff.interop.files import Unreadable, checked
from jaxdiff.interop.torch_names import KNOWN, STORAGE_NAMES
from jaxdiff.interop.torch_tensors import Storage, storage_of
from jaxdiff.interop.unpickling import Budget, Name, Unpickler

_LEGACY = 0x1950A86A20F9469CFC6C
_INLINE = ("torch.storage", "_load_from_bytes")
_LITTLE = memoryview(b"little")
_LARGEST_DIRECTORY = 1 << 22
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ELSEWHERE = (
    "load it with the PyTorch that wrote it, and `torch.save` its state dict again on an ordinary machine"
)


def is_legacy(start: bytes) -> bool:
    """Whether a file has the second format: it starts with a magic number, pickled with or without a frame."""
    magic = b"\x8a\x0a" + _LEGACY.to_bytes(10, "little")
    return start.startswith(magic, 2) or start.startswith(magic, 11)


def read_zip(path: pathlib.Path, data: memoryview) -> Any:
    """Read the object of the first format; `data` are the bytes of the file at `path`."""
    entries = _entries(path, data)
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Unreadable(
            f"expected a zip archive of torch.save with one data.pkl, got {len(roots)}",
            "name a file of weights",
        )
    files = {name.removeprefix(roots[0]): entry for name, entry in entries.items()}
    if checked(*files.get("byteorder", (_LITTLE, None))) != _LITTLE:
        raise Unreadable("expected little-endian numbers, got another byte order", _ELSEWHERE)
    storages = {name.removeprefix("data/"): file for name, file in files.items() if name.startswith("data/")}
    return Unpickler(checked(*files["data.pkl"]), KNOWN, _Storages(storages)).load()


def read_legacy(
    data: memoryview, known: Mapping[tuple[str, str], Name] = KNOWN, budget: Budget | None = None
) -> Any:
    """Read the object of the second format."""
    budget, storages = budget or Budget(), _Storages()
    parts, at = [], 0
    for persistent in (None, None, None, storages, None):
        part = Unpickler(data, known, persistent, budget, at)
        parts.append(part.load())
        at = part.at
    magic, _, system, content, names = parts
    if not (magic == _LEGACY and isinstance(system, dict) and isinstance(names, list)):
        raise Unreadable("expected the format of torch.save before PyTorch 1.6, got only its magic number")
    if system.get("little_endian") is not True:
        raise Unreadable("expected little-endian numbers, got another byte order", _ELSEWHERE)
    for name in names:
        (length,) = struct.unpack_from("<q", data, at)
        storage = storages.known.get(name) if isinstance(name, str) else None
        if storage is None or length != storage.length:
            raise Unreadable("expected the storages that its pickle names, got others")
        storage.data = data[at + 8 : at + 8 + storage.size]
        at += 8 + storage.size
    if at > len(data):
        raise Unreadable("expected all of its storages, got a truncated file")
    return content


def read_pickle(data: memoryview) -> Any:
    """Read the object of the third format."""
    budget = Budget()
    known = KNOWN | {_INLINE: Name(*_INLINE, functools.partial(_inline_storage, budget))}
    return Unpickler(data, known, budget=budget).load()


def _inline_storage(budget: Budget, content: Any) -> Storage:
    if not isinstance(content, memoryview):
        raise Unreadable("expected bytes for a storage in its pickle, got another object")
    storage = read_legacy(content, STORAGE_NAMES, budget)
    if not isinstance(storage, Storage):
        raise Unreadable("expected a storage in its pickle, got another object")
    return storage


class _Storages:
    """Creates the storages that a pickle names by persistent ids, each once.

    Args:
      stored: bytes and checksum of each storage by name; None if they follow later in the file.
    """

    def __init__(self, stored: Mapping[str, tuple[memoryview, int]] | None = None):
        self.known: dict[str, Storage] = {}
        self._stored = stored

    def __call__(self, key: Any) -> Storage:
        """The storage of the id ("storage", kind, name, device, length); the older format appends None."""
        if not (
            isinstance(key, tuple) and len(key) in (5, 6) and isinstance(key[0], str) and key[0] == "storage"
        ):
            raise Unreadable("expected persistent ids of storages in its pickle, got another id")
        _, kind, name, _, length, *view = key
        if view not in ([], [None]):
            raise Unreadable(
                "expected plain storages, got views of storages (PyTorch before 0.4)", _ELSEWHERE
            )
        if not isinstance(name, str) or (self._stored is not None and name not in self._stored):
            raise Unreadable("expected every storage that its pickle names, got one less")
        if name not in self.known:
            data, checksum = (None, None) if self._stored is None else self._stored[name]
            self.known[name] = storage_of(kind, length, data, checksum)
        return self.known[name]


def _entries(path: pathlib.Path, data: memoryview) -> dict[str, tuple[memoryview, int]]:
    """The bytes and checksum of each file in an archive. PyTorch stores files uncompressed."""
    with _Directory(path) as file, zipfile.ZipFile(file) as archive:
        listed = sorted(archive.infolist(), key=lambda info: info.header_offset)
        end_of_data = archive.start_dir
    found, free = {}, 0
    for info in listed:
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.file_size != info.compress_size
            or info.flag_bits & 1
        ):
            raise Unreadable(
                "expected an uncompressed archive, got a compressed or encrypted one", _ELSEWHERE
            )
        signature, name, extra = _LOCAL_HEADER.unpack_from(data, info.header_offset)
        start = info.header_offset + _LOCAL_HEADER.size + name + extra
        end = start + info.file_size
        if (
            signature != b"PK\x03\x04"
            or info.header_offset < free
            or end > end_of_data
            or info.filename in found
        ):
            raise Unreadable(
                "expected separate files in the archive, got ones that overlap, repeat or exceed it"
            )
        found[info.filename], free = (data[start:end], info.CRC), end
    return found


class _Directory(io.FileIO):
    """An archive file for `zipfile` that refuses to read more than 4 MiB at once, far above any real directory."""

    def read(self, size: int | None = -1) -> bytes:
        rest = os.fstat(self.fileno()).st_size - self.tell()
        size = rest if size is None or size < 0 else min(size, rest)
        if size > _LARGEST_DIRECTORY:
            raise Unreadable(
                f"expected an archive directory of at most {_LARGEST_DIRECTORY} bytes, got {size}"
            )
        return super().read(size)
