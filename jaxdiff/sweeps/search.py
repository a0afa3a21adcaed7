"""Golden-section search over the length of the average of the weights."""

import dataclasses
import math
from collections.abc import Callable, Mapping

from jaxdiff.errors import expect
from jaxdiff.sweeps.settings import values
from jaxdiff.training.power_ema import check_std

GOLDEN = (math.sqrt(5) - 1) / 2
"""The share of an interval that each evaluation keeps."""

DIGITS = 4
"""Significant digits of a length, so that the one that is printed is the one that was evaluated."""

FLAG = "--ema-search"


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search has found.

    Attributes:
      tried: the value at each length, in the order of evaluation.
      best: the length of the least value.
      low, high: the interval in which the minimum lies, if there is only one.
    """

    tried: Mapping[float, float]
    best: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"best EMA length {self.best:g} of {len(self.tried)} tried; with one optimum only, it lies between "
            f"{self.low:.{DIGITS}g} and {self.high:.{DIGITS}g}"
        )


def bounds(text: str) -> tuple[float, float]:
    """The shortest and the longest length of ``LOW:HIGH``.

    Raises:
      UserError: one of them is not the length of an average, or they are not in order.
    """
    low, colon, high = text.partition(":")
    expect(bool(colon), FLAG, text, "two lengths LOW:HIGH", "try 0.02:0.25")
    (shortest,), (longest,) = (values(FLAG, word, _length) for word in (low, high))
    expect(shortest < longest, FLAG, text, "LOW < HIGH", "swap them")
    return shortest, longest


def golden_section(value: Callable[[float], float], low: float, high: float, evaluations: int) -> Search:
    """The length of least value by golden-section search over its logarithm (Kiefer 1953).

    Each evaluation after the first keeps the share `GOLDEN` of the interval. A value with several minima may give
    one that is not the least.

    Args:
      value: of a length; called once for each.
      low, high: the shortest and the longest length.
      evaluations: number of lengths to try, at least 2.
    """
    tried: dict[float, float] = {}

    def at(position: float) -> float:
        length = float(f"{math.exp(position):.{DIGITS}g}")
        if length not in tried:
            tried[length] = value(length)
        return tried[length]

    left, right = math.log(low), math.log(high)
    for _ in range(evaluations - 1):
        width = GOLDEN * (right - left)
        if at(right - width) <= at(left + width):
            right = left + width
        else:
            left = right - width
    return Search(tried, min(tried, key=lambda length: tried[length]), math.exp(left), math.exp(right))


def _length(flag: str, text: str) -> float:
    try:
        length = float(text)
    except ValueError:
        length = math.nan
    check_std(flag, length)
    return length
