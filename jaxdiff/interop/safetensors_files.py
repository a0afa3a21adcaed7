"""Safetensors files, which hold arrays and text and no code."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdiff.errors import UserError, expect
from jaxdiff.interop.files import Unreadable, mapped

_LONGEST_HEADER = 1 << 23


def is_safetensors(start: bytes) -> bool:
    """Whether a file starts like safetensors: eight bytes with the length of the header, then JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 40


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, Callable[[], np.ndarray]], dict[str, str]]:
    """Open a file: a function per tensor name that reads the tensor, and the file's text metadata.

    The safetensors library checks the header for consistency with itself and with the length of the file. A header of
    more than 8 MiB, many times that of a large model, is refused first.
    """
    length = int.from_bytes(bytes(mapped(path)[:8]), "little")
    if length > _LONGEST_HEADER:
        raise Unreadable(f"expected a header of at most {_LONGEST_HEADER} bytes, got {length}")
    file = safe_open(path, framework="np")
    return {name: _reader(file, name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _reader(file: Any, name: str) -> Callable[[], np.ndarray]:
    return lambda: file.get_tensor(name)


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays into a file atomically: under a temporary name, which is then renamed.

    Args:
        path: the file; an existing one is replaced.
        tensors: NumPy or JAX arrays of any shape and strides; bfloat16 is kept.
        metadata: text to store with them, such as a config as JSON.

    Raises:
        UserError: the format has no such dtype, or the file cannot be written.
    """
    path = pathlib.Path(path)
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    for name, array in arrays.items():
        plain = array.dtype.kind in "fiub" or array.dtype.name.startswith(("bfloat16", "float8_"))
        expect(plain, f"tensors[{name!r}]", array.dtype.name, "a dtype of safetensors", "cast the array")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(arrays, temporary, dict(metadata) if metadata else None)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        fix = "name an existing folder with write access and enough space"
        raise UserError(f"path={str(path)!r}: expected a writable file, got {error}. Fix: {fix}") from error
    finally:
        temporary.unlink(missing_ok=True)
