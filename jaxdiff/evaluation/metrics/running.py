"""Running means, the states of most metrics of pairs, and the metrics that keep nothing else."""

import math
from typing import NamedTuple, Protocol

from jaxdiff.evaluation.metric import Batch, Metric


class Mean(NamedTuple):
    """Mean of a stream of numbers.

    Attributes:
      total: sum of the numbers so far.
      count: how many there are.
    """

    total: float = 0.0
    count: int = 0

    def add(self, total: float, count: int) -> "Mean":
        """The mean with `count` further numbers, whose sum is `total`."""
        return Mean(self.total + total, self.count + count)

    @property
    def value(self) -> float | None:
        """The mean; None of no numbers."""
        return self.total / self.count if self.count else None

    @property
    def root(self) -> float | None:
        """The root of the mean, for squared errors; None of no numbers."""
        return None if self.value is None else math.sqrt(self.value)


class MeanMetric(Metric, Protocol):
    """A metric that is a function of one running mean over a stream, by default the samples."""

    @property
    def streams(self) -> tuple[str, ...]:
        return ("samples",)

    def init(self) -> Mean:
        return Mean()

    def update(self, state: Mean, batch: Batch) -> Mean:
        return state.add(*self.mean(batch))

    def mean(self, batch: Batch) -> Mean:
        """The mean over one batch."""
        ...
