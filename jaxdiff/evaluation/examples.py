"""Examples for evaluation: arrays in memory, and chosen rows of other examples."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer

from jaxdiff.evaluation.protocols import Examples, Fields


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
    """Examples held as arrays.

    Attributes:
      fields: arrays with one row per example.
    """

    fields: Fields

    def __len__(self) -> int:
        return len(self.fields["image"])

    def rows(self, index: Integer[np.ndarray, "n"]) -> Fields:
        return {name: values[index] for name, values in self.fields.items()}

    def batches(self, batch_size: int) -> Iterator[Fields]:
        return _in_order(self, batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Chosen rows of other examples, in the given order.

    Attributes:
      examples: the examples.
      index: positions in `examples`; a position may occur more than once.
    """

    examples: Examples
    index: Integer[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, index: Integer[np.ndarray, "n"]) -> Fields:
        return self.examples.rows(self.index[index])

    def batches(self, batch_size: int) -> Iterator[Fields]:
        return _in_order(self, batch_size)


def _in_order(examples: Examples, batch_size: int) -> Iterator[Fields]:
    for first in range(0, len(examples), batch_size):
        yield examples.rows(np.arange(first, min(first + batch_size, len(examples))))
