"""Integrity of checkpoints: a manifest with the size and checksums of every file, which is written last.

Neither Orbax nor TensorStore checks the stored arrays in these versions: of random flipped bits, most are read as wrong
weights. A checkpoint with a manifest is complete, and `verify` finds every flipped bit and every missing byte.
"""

import concurrent.futures
import json
import mmap
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import xxhash
from etils import epath

from jaxdiff.errors import RunFailure

MANIFEST = "manifest.json"
FORMAT_FILE = "format.json"
"""Present in every checkpoint with a manifest, so that a lost manifest is noticed."""

ITEM = "state"
"""Name of the state within the folder of a step."""

COMPLETE = (f"{ITEM}/_METADATA", f"{ITEM}/manifest.ocdbt")
"""Files of every complete state. An interrupted copy or a stray directory lacks one of them."""


class _Crc32:
    """CRC-32 with the methods of a hash of `xxhash`."""

    def __init__(self):
        self._sum = 0

    def update(self, data: bytes) -> None:
        self._sum = zlib.crc32(data, self._sum)

    def intdigest(self) -> int:
        return self._sum


CHECKSUMS: dict[int, Callable[[], Any]] = {1: _Crc32, 2: xxhash.xxh3_64}
"""By the version of the layout. XXH3 takes no longer than reading the bytes from memory, CRC-32 three times as long."""

FORMAT = 2
"""Version of the layout of a checkpoint."""

KINDS = {"format": int, "step": int, "time": float, "files": dict}
"""The fields of a manifest."""

BLOCK, PART = 1 << 26, 1 << 18
"""Bytes per checksum, since the blocks of a large file are summed side by side; and bytes read at a time."""

UNSTABLE = ("_CHECKPOINT_METADATA",)
"""Orbax's record of times. Orbax writes it after the manifest, and nothing here reads it."""

Reader = Callable[[epath.Path, int, int], Iterator[bytes | mmap.mmap]]
"""The bytes of a file from a start to an end, in parts."""

VERIFY = "JAXDIFF_VERIFY"
"""Environment variable: 0 to read checkpoints without verifying them. The flag --no-verify sets it."""


def wanted() -> bool:
    """Whether checkpoints are to be verified when they are read."""
    return os.environ.get(VERIFY, "1") != "0"


class Damaged(RunFailure):
    """An incomplete checkpoint, or one with a changed file."""


def is_complete(folder: epath.Path) -> bool:
    """Whether a folder has a whole state, and its manifest unless it is of a version before manifests."""
    has_manifest = (folder / MANIFEST).exists() or not (folder / FORMAT_FILE).exists()
    return has_manifest and all((folder / name).exists() for name in COMPLETE)


def write_manifest(folder: epath.Path, step: int) -> None:
    """Write the manifest of a folder whose other files are complete."""
    record = {
        "format": FORMAT,
        "step": step,
        "time": time.time(),
        "files": dict(_sums(folder, FORMAT, _mapped)),
    }
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n")


def read_manifest(folder: epath.Path) -> Mapping[str, Any] | None:
    """The manifest of a checkpoint; None for one of a version before manifests.

    Raises:
      Damaged: it cannot be read, is of a later format, or is missing where there was one.
    """
    file = folder / MANIFEST
    if not file.exists():
        if (folder / FORMAT_FILE).exists():
            raise Damaged(f"{file}: missing")
        return None
    try:
        record = json.loads(file.read_text())
        values = [record[name] for name in KINDS]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{file}: not readable ({type(error).__name__})") from None
    if not all(map(isinstance, values, KINDS.values())) or record["format"] not in CHECKSUMS:
        raise Damaged(f"{file}: not a manifest of format {' or '.join(map(str, CHECKSUMS))}")
    if str(record["step"]) != folder.name:
        raise Damaged(
            f"{folder}: expected the state of step {folder.name}, got that of step {record['step']}"
        )
    return record


def verify(folder: epath.Path) -> bool:
    """Compare all files of a checkpoint with its manifest.

    Returns:
      True if they agree; False for a checkpoint without a manifest, of an earlier version.

    Raises:
      Damaged: a file is missing or differs; the message names it.
    """
    record = read_manifest(folder)
    if record is None:
        return False
    try:
        found = dict(_sums(folder, record["format"], _read))
    except OSError as error:
        raise Damaged(f"{folder}: not readable ({error.strerror or error})") from None
    for name, sums in record["files"].items():
        if name not in found:
            raise Damaged(f"{folder / name}: missing")
        if found[name] != sums:
            raise Damaged(f"{folder / name}: not as it was saved (size or checksum differ)")
    return True


def _sums(folder: epath.Path, version: int, read: Reader) -> Iterator[tuple[str, list[int]]]:
    """For each file below a folder its name, and its size followed by the checksum of each block."""

    def block(file: epath.Path, start: int, stop: int) -> int:
        checksum = CHECKSUMS[version]()
        for part in read(file, start, stop):
            checksum.update(part)
        return checksum.intdigest()

    names = sorted(_files(folder))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # checksums release the interpreter's lock
        jobs = []
        for name in names:
            file, size = folder / name, (folder / name).stat().length
            starts = range(0, size, BLOCK)
            jobs.append((name, size, [pool.submit(block, file, i, min(i + BLOCK, size)) for i in starts]))
        for name, size, blocks in jobs:
            yield name, [size, *(block.result() for block in blocks)]


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        name = f"{prefix}{path.name}"
        if path.is_dir():
            yield from _files(path, f"{name}/")
        elif name != MANIFEST and path.name not in UNSTABLE:
            yield name


def _read(file: epath.Path, start: int, stop: int) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a part of a file. A disk that cannot read them raises `OSError`."""
    with file.open("rb") as stream:
        stream.seek(start)
        while start < stop and (data := stream.read(min(stop - start, PART))):
            yield data
            start += len(data)


def _mapped(file: epath.Path, start: int, stop: int) -> Iterator[bytes | mmap.mmap]:
    """`_read` for files that were just written: those of this machine are still in memory, and are not copied."""
    try:
        with open(file, "rb") as stream:
            data = mmap.mmap(stream.fileno(), stop - start, offset=start, access=mmap.ACCESS_READ)
    except OSError:  # a bucket, or a file system without mapping
        yield from _read(file, start, stop)
        return
    with data:
        yield data
