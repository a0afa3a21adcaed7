"""Bootstrap: how much a figure would change with another sample of the same size (Efron 1979).

It measures chance, not bias: a Fréchet distance of few samples is too large in every resample.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Integer

SMALL = 10_000
"""Samples of this size or less have intervals. In larger ones, chance is below the digits of a table."""

RESAMPLES, LEVEL = 1000, 0.95


def counts(n: int, resamples: int, seed: int = 0) -> Iterator[Integer[np.ndarray, "n"]]:
    """How often each of n rows occurs in each resample of n rows, drawn with replacement."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(n, size=n), minlength=n)


def interval(
    contributions: Float[np.ndarray, "n"], resamples: int = RESAMPLES, level: float = LEVEL
) -> list[float] | None:
    """Percentile interval of the mean of the rows' contributions; None for more than `SMALL` rows."""
    n = len(contributions)
    if not 1 < n <= SMALL:
        return None
    means = [float(row @ contributions / n) for row in counts(n, resamples)]
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return [float(end) for end in ends]


def spread(statistic: Callable[[Integer[np.ndarray, "n"]], float], n: int, resamples: int) -> float:
    """Standard error of a statistic of n rows: its standard deviation over resamples.

    Args:
      statistic: the value for rows that occur with these counts.
    """
    return float(np.std([statistic(row) for row in counts(n, resamples)], ddof=1))
