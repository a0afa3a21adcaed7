"""Arrays that are not yet read, so that a file can be written without holding all of its arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pending:
    """An array that is computed each time it is read.

    Attributes:
      shape, dtype: of the array.
      read: computes it.
      origin: where it comes from, for errors.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    origin: str = ""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)
