"""Safetensors files, which hold arrays and text and no code."""

import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 - gives NumPy bfloat16 and float8 by name
import numpy as np
from safetensors import safe_open

from jaxdiff.errors import UserError, expect
from jaxdiff.interop.files import Unreadable, mapped
from jaxdiff.interop.pending import Pending

_LONGEST_HEADER = 1 << 23

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_NAMES = {code: name for name, code in _DTYPES.items()}


def is_safetensors(start: bytes) -> bool:
    """Whether a file starts like safetensors: eight bytes with the length of the header, then JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 40


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, Callable[[], np.ndarray]], dict[str, str]]:
    """Open a file: a function per tensor name that gives the tensor, and the file's text metadata.

    The safetensors library checks the header for consistency with itself and with the length of the file. A header of
    more than 8 MiB, many times that of a large model, is refused first. Tensors are views of the mapped file.
    """
    data = mapped(path)
    length = int.from_bytes(bytes(data[:8]), "little")
    if length > _LONGEST_HEADER:
        raise Unreadable(f"expected a header of at most {_LONGEST_HEADER} bytes, got {length}")
    file = safe_open(path, framework="np")
    header = json.loads(bytes(data[8 : 8 + length]))
    values = data[8 + length :]
    readers = {name: functools.partial(_tensor, values, name, header[name]) for name in file.keys()}  # noqa: SIM118
    return readers, file.metadata() or {}


def _tensor(values: memoryview, name: str, about: Mapping[str, Any]) -> np.ndarray:
    if about["dtype"] not in _NAMES:
        raise Unreadable(f"expected {name[:200]!r} in a dtype of NumPy, got {about['dtype']}", "convert it")
    start, end = about["data_offsets"]
    return np.frombuffer(values[start:end], np.dtype(_NAMES[about["dtype"]])).reshape(about["shape"])


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays into a file atomically: under a temporary name, which is then renamed.

    Args:
        path: the file; an existing one is replaced.
        tensors: NumPy or JAX arrays of any shape and strides, bfloat16 among them; or `Pending` ones, of which no more
            than one is in memory at a time.
        metadata: text to store with them, such as a config as JSON.

    Raises:
        UserError: the format has no such dtype, or the file cannot be written.
    """
    path = pathlib.Path(path)
    for name, tensor in tensors.items():
        dtype = np.dtype(tensor.dtype).name
        expect(dtype in _DTYPES, f"tensors[{name!r}]", dtype, "a dtype of safetensors", "cast the array")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            _write(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        fix = "name an existing folder with write access and enough space"
        raise UserError(f"path={str(path)!r}: expected a writable file, got {error}. Fix: {fix}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write(file: BinaryIO, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None) -> None:
    """The format: the length of the header in 8 bytes, the header as JSON, the bytes of the tensors one after another.

    Larger elements come first, so that every tensor is aligned to the size of its elements.
    """
    names = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        dtype, shape = np.dtype(tensors[name].dtype), tuple(tensors[name].shape)
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        tensor = tensors[name]
        array = np.ascontiguousarray(tensor.read() if isinstance(tensor, Pending) else tensor)
        file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
