"""Storages and tensors of PyTorch, as numpy can see them. Whatever a file says of them is checked here."""

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np

from jaxdiff.interop.files import Unreadable, checked
from jaxdiff.interop.unpickling import Name

_MOST_AXES = 32

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}

STORAGES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


@dataclasses.dataclass(slots=True, eq=False)
class Storage:
    """The numbers of one or more tensors, in a row. `data` is None until the file has come to them."""

    dtype: np.dtype
    length: int
    data: memoryview | None = None
    checksum: int | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.length * self.dtype.itemsize

    def read(self) -> memoryview:
        """The bytes, compared with their checksum the first time."""
        if self.data is None or len(self.data) != self.size:
            raise Unreadable(f"it has not the {self.size} bytes that it promises for a storage")
        self.data, self.checksum = checked(self.data, self.checksum), None
        return self.data


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage, its offset and strides in elements. Made by `tensor_of`, which checks them."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def array(self) -> np.ndarray:
        """The numbers, as they lie in the file: read-only, and read from disk when they are looked at."""
        size = self.dtype.itemsize
        strides = tuple(stride * size for stride in self.strides)
        data = self.storage.read()
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.ndarray(self.shape, self.dtype, buffer=data, offset=self.offset * size, strides=strides)


def storage_of(
    kind: Any, length: Any, data: memoryview | None = None, checksum: int | None = None
) -> Storage:
    """A storage of `length` elements, by the name of its class (``torch.FloatStorage``)."""
    if not (isinstance(kind, Name) and kind.name in STORAGES and _is_count(length)):
        raise Unreadable("its pickle has a storage of an unknown kind or an impossible length")
    return Storage(np.dtype(DTYPES[STORAGES[kind.name]]), length, data, checksum)


def tensor_of(storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None) -> Tensor:
    """A tensor, which must lie within its storage and have no more elements than that.

    The last is no rule of PyTorch, where a number can be repeated without being stored (``expand``). Weights are not
    such, and a tensor of a few bytes must not become one of terabytes as soon as somebody copies it.
    """
    if not isinstance(storage, Storage):
        raise Unreadable("its pickle has a tensor without a storage")
    if not (
        isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _MOST_AXES
    ):
        raise Unreadable("its pickle has a tensor whose shape and strides are not lists of the same length")
    if not all(_is_count(number) for number in (offset, *shape, *strides)):
        raise Unreadable("its pickle has a tensor with an impossible number in its shape, strides or offset")
    dtype = storage.dtype if dtype is None else dtype
    room = storage.size // dtype.itemsize
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last >= room or math.prod(shape) > room):
        raise Unreadable(
            f"a tensor of shape {shape}, strides {strides}, offset {offset} in a storage of {room} elements"
        )
    return Tensor(storage, offset, shape, strides, dtype)


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 48
