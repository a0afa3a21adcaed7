"""Files in the safetensors format: numbers and text, nothing that could run."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdiff.errors import UserError, require
from jaxdiff.interop.files import Unreadable, mapped

_LONGEST_HEADER = 1 << 23


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins as such: the length of its header in eight bytes, then JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 40


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, Callable[[], np.ndarray]], dict[str, str]]:
    """A reader for each tensor, by name, and the text that the file has beside them.

    The library compares the header with itself and with the length of the file; a header of more than 8 MiB,
    many times that of a large model, is refused before.
    """
    length = int.from_bytes(bytes(mapped(path)[:8]), "little")
    if length > _LONGEST_HEADER:
        raise Unreadable(f"its header says that it is {length} bytes long, which no list of tensors is")
    file = safe_open(path, framework="np")
    return {name: _reader(file, name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _reader(file: Any, name: str) -> Callable[[], np.ndarray]:
    return lambda: file.get_tensor(name)


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays into a file, whole or not at all: under another name first, then renamed.

    Args:
        path: of the file. One that is there is replaced.
        tensors: arrays of numpy or JAX, of any shape and strides; bfloat16 is kept.
        metadata: text beside them, such as a config as JSON.

    Raises:
        UserError: for a kind of array or a folder that cannot be written.
    """
    path = pathlib.Path(path)
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    for name, array in arrays.items():
        plain = array.dtype.kind in "fiub" or array.dtype.name.startswith(("bfloat16", "float8_"))
        require(
            plain,
            f"tensors[{name!r}]",
            array.dtype.name,
            "not a kind of number that the format has",
            "cast it",
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(arrays, temporary, dict(metadata) if metadata else None)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        fix = "name a folder that exists, with room in it and the right to write there"
        raise UserError(f"path={str(path)!r}: cannot be written ({error}). Fix: {fix}") from error
    finally:
        temporary.unlink(missing_ok=True)
