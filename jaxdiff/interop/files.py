"""Untrusted files: memory-mapped, checked, and refused with one-line errors."""

import contextlib
import json
import mmap
import pathlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors import SafetensorError

from jaxdiff.errors import UserError

AGAIN = "download it again and compare its size and checksum with the published ones"
"""Fix for a damaged or incomplete file."""

_LONGEST_JSON = 1 << 23

_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""Exceptions of Python and its libraries for malformed bytes."""


class Unreadable(Exception):
    """A file is refused; `reading` adds its path.

    Attributes:
      why: the reason, "expected X, got Y".
      fix: what the user can do.
    """

    def __init__(self, why: str, fix: str = AGAIN):
        super().__init__(why)
        self.why, self.fix = why, fix


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turn every failure to read the file at `path` into a `UserError` with its path."""
    try:
        yield
    except UserError:
        raise
    except Unreadable as error:
        raise UserError(f"path={str(path)!r}: {error.why}. Fix: {error.fix}") from error
    except OSError as error:
        got = error.strerror or str(error)
        raise UserError(
            f"path={str(path)!r}: expected a readable file, got {got}. Fix: name a file that exists"
        ) from error
    except _DAMAGE as error:
        raise UserError(
            f"path={str(path)!r}: expected an undamaged file, got malformed data ({error}). Fix: {AGAIN}"
        ) from error


def mapped(path: pathlib.Path) -> memoryview:
    """Memory-map a file: its bytes are read on access. Symbolic links are followed.

    Only regular files are allowed: a pipe or a device could block, or never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        fix = "name a file of weights, or the folder of a diffusers model"
        raise Unreadable("expected a regular file, got something else", fix)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise Unreadable("expected a file of weights, got an empty file")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def release(array: np.ndarray) -> None:
    """Let go of the memory of a mapped file that `array` is a view of; its values are read again where they are needed.

    Memory of a mapped file counts as the process's, so that a file that is read once would be in it as a whole.
    """
    owner: Any = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    if owner is not None and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def checked(data: memoryview, checksum: int | None) -> memoryview:
    """`data`, if it has the given CRC-32; without a checksum, `data` unchecked."""
    if checksum is not None and zlib.crc32(data) != checksum:
        raise Unreadable("expected the checksum stored in it, got another: bytes were changed or lost")
    return data


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object of at most 8 MiB, which is many times the size of any model's config.

    Raises:
      UserError: names this file, which is one of several in the folder that is read.
    """
    with reading(path):
        text = mapped(path)
        if len(text) > _LONGEST_JSON:
            raise Unreadable(f"expected at most {_LONGEST_JSON} bytes of JSON, got {len(text)}")
        content = json.loads(bytes(text))
        if not isinstance(content, dict):
            raise Unreadable("expected a JSON object, got another value")
        return content
