"""Files of others: opened without trust, mapped rather than read, and refused in one line."""

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

from safetensors import SafetensorError

from jaxdiff.errors import UserError

AGAIN = "download it again and compare its size and checksum with those that are published"
"""What to do about a file that is not whole."""

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
"""What Python and its libraries raise at bytes that make no sense."""


class Unreadable(Exception):
    """A file is refused. Says why and what to do; `reading` adds which file it is."""

    def __init__(self, why: str, fix: str = AGAIN):
        super().__init__(why)
        self.why, self.fix = why, fix


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turn whatever goes wrong with the file at `path` into a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except Unreadable as error:
        raise UserError(f"path={str(path)!r}: {error.why}. Fix: {error.fix}") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"path={str(path)!r}: {why}. Fix: name a file that exists and can be read") from error
    except _DAMAGE as error:
        raise UserError(
            f"path={str(path)!r}: damaged, or not what it claims to be ({error}). Fix: {AGAIN}"
        ) from error


def mapped(path: pathlib.Path) -> memoryview:
    """The bytes of a file, read by the system when they are looked at. Symbolic links are followed.

    Only regular files: a pipe or a device could wait, or go on, for ever.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("not a regular file", "name a file of weights, or the folder of a diffusers model")
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise Unreadable("the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def checked(data: memoryview, checksum: int | None) -> memoryview:
    """`data`, after a look at its CRC-32 where there is one."""
    if checksum is not None and zlib.crc32(data) != checksum:
        raise Unreadable("a checksum inside it differs: bytes were changed or lost")
    return data


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object. At most 8 MiB, many times more than any model's."""
    text = mapped(path)
    if len(text) > _LONGEST_JSON:
        raise Unreadable(f"{path.name} has {len(text)} bytes, too many for a description of a model")
    content = json.loads(bytes(text))
    if not isinstance(content, dict):
        raise Unreadable(f"{path.name} holds no JSON object")
    return content
