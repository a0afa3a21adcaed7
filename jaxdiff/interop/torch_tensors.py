"""PyTorch storages and tensors as NumPy arrays, with checks of all values from the file."""

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
    """Contiguous numbers of one or more tensors.

    Attributes:
      dtype: type of the elements.
      length: number of elements.
      data: bytes of the elements; None until the file's reader reaches them.
      checksum: CRC-32 of `data`, or None.
    """

    dtype: np.dtype
    length: int
    data: memoryview | None = None
    checksum: int | None = None

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.length * self.dtype.itemsize

    def read(self) -> memoryview:
        """The bytes, checked against the checksum on first use."""
        if self.data is None or len(self.data) != self.size:
            got = 0 if self.data is None else len(self.data)
            raise Unreadable(f"expected {self.size} bytes for a storage, got {got}")
        self.data, self.checksum = checked(self.data, self.checksum), None
        return self.data


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage, with offset and strides in elements; `tensor_of` checks them."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def array(self) -> np.ndarray:
        """A read-only array over the mapped file, which is read from disk on access."""
        size = self.dtype.itemsize
        strides = tuple(stride * size for stride in self.strides)
        data = self.storage.read()
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.ndarray(self.shape, self.dtype, buffer=data, offset=self.offset * size, strides=strides)


def storage_of(
    kind: Any, length: Any, data: memoryview | None = None, checksum: int | None = None
) -> Storage:
    """A storage of `length` elements of the class `kind`, such as ``torch.FloatStorage``."""
    if not (isinstance(kind, Name) and kind.name in STORAGES and _is_count(length)):
        raise Unreadable("expected storages of a known class and length, got others")
    return Storage(np.dtype(DTYPES[STORAGES[kind.name]]), length, data, checksum)


def tensor_of(storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None) -> Tensor:
    """A tensor, which must be within its storage and have at most as many elements.

    PyTorch allows more elements, by repeating numbers without storing them (``expand``). Weights do not need that, and
    a copy of a tensor of a few bytes must not take terabytes.
    """
    if not isinstance(storage, Storage):
        raise Unreadable("expected tensors with storages, got one without")
    if not (
        isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _MOST_AXES
    ):
        raise Unreadable("expected a shape and strides of equal lengths for a tensor, got others")
    if not all(_is_count(number) for number in (offset, *shape, *strides)):
        raise Unreadable("expected integers >= 0 in a tensor's shape, strides and offset, got others")
    dtype = storage.dtype if dtype is None else dtype
    room = storage.size // dtype.itemsize
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last >= room or math.prod(shape) > room):
        raise Unreadable(
            f"expected a tensor within its storage of {room} elements, got shape {shape}, strides {strides}, "
            f"offset {offset}"
        )
    return Tensor(storage, offset, shape, strides, dtype)


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 48
