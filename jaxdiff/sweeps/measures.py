"""Figures of settings, and when two of them differ by more than their sampling error."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxdiff.errors import UserError, expect
from jaxdiff.evaluation.metric import Metric
from jaxdiff.evaluation.plots.tables import lookup
from jaxdiff.sweeps.settings import Setting

SAMPLES, REFERENCE = "samples", "reference"

FRACTIONS = {
    "accuracy": SAMPLES,
    "precision": SAMPLES,
    "recall": REFERENCE,
    "coverage": REFERENCE,
    "memorization.exact_copies": SAMPLES,
    "memorization.near_copies": SAMPLES,
}
"""Values that are fractions of images, and of which: their sampling error is binomial."""

LOWER = (
    "frechet", "fid", "sfid", "kid", "fd", "cmmd", "class_frechet", "lpips", "distance_to_truth", "colour_shift",
    "mean_colour_error", "spectrum", "consistency", "error", "hint_error", "exact_copies", "near_copies",
)  # fmt: skip
"""What some part of a path begins with, where the value is better when it is lower."""

QUALITY, DIVERSITY = ("accuracy", "precision", "frechet"), ("recall", "coverage", "spread.minimum")
"""The values that stand for quality and diversity, if nothing else is wanted: the first that an evaluation has."""

Z = 1.959963984540054
"""Of a 95 % interval."""


class Measure(NamedTuple):
    """A value of an evaluation.

    Attributes:
      path: names joined by dots.
      higher: whether higher is better.
    """

    path: str
    higher: bool


class Figure(NamedTuple):
    """A value of one setting.

    Attributes:
      value: the number.
      n: number of images of which it is the fraction; None for other values, whose error is unknown.
      higher: whether higher is better.
    """

    value: float
    n: int | None = None
    higher: bool = True

    @property
    def rank(self) -> float:
        """The value, or its negative: higher is better."""
        return self.value if self.higher else -self.value


@dataclasses.dataclass(frozen=True)
class Point:
    """A setting with what it gives and what it costs.

    Attributes:
      setting: the setting.
      quality, diversity: figures of its samples.
      nfe: evaluations of the model for a sample; guidance may double the batch of each.
      seconds: for a sample.
    """

    setting: Setting
    quality: Figure
    diversity: Figure
    nfe: int
    seconds: float


def half_width(a: Figure, b: Figure) -> float | None:
    """Half the 95 % interval of the difference of two independent fractions; None where a figure is no fraction.

    Agresti & Caffo 2000, "Simple and Effective Confidence Intervals for Proportions": one success and one failure
    are added to each, so that fractions of 0 and 1 have an error too.
    """
    if a.n is None or b.n is None:
        return None
    return Z * math.sqrt(_variance(a.value, a.n) + _variance(b.value, b.n))


def differ(a: Figure, b: Figure) -> bool | None:
    """Whether two figures differ by more than the error of their difference; None where it is unknown."""
    width = half_width(a, b)
    if width is None or a.n is None or b.n is None:
        return False if a.value == b.value else None
    return abs(_adjusted(a.value, a.n) - _adjusted(b.value, b.n)) > width


def worse(a: Figure, b: Figure) -> bool:
    """Whether `a` is worse than `b`, and not within the error of the difference; an unknown error counts as none."""
    return a.rank < b.rank and differ(a, b) is not False


def _adjusted(fraction: float, n: int) -> float:
    return (fraction * n + 1) / (n + 2)


def _variance(fraction: float, n: int) -> float:
    p = _adjusted(fraction, n)
    return p * (1 - p) / (n + 2)


def measure(flag: str, text: str | None, default: Sequence[str], values: Mapping[str, Any]) -> Measure:
    """The measure that a flag names, ``frechet`` or ``NAME:lower``; without the flag, the first default that exists.

    Args:
      values: of an evaluation.

    Raises:
      UserError: the evaluation has no such number.
    """
    if text is None:
        found = next((path for path in default if _is_number(lookup(values, path))), None)
        if found is None:
            raise UserError(f"{flag}=: expected a value of the evaluation, got none of {', '.join(default)}. "
                            f"Fix: name one of {', '.join(sorted(paths(values)))}")  # fmt: skip
        text = found
    path, colon, direction = text.partition(":")
    expect(
        not colon or direction in ("higher", "lower"),
        flag,
        text,
        "NAME, NAME:higher or NAME:lower",
        "say which is better",
        direction,
    )
    known = sorted(paths(values))
    expect(path in known, flag, text, "a number of the evaluation", f"name one of {', '.join(known)}", path)
    lower = any(part.startswith(LOWER) for part in path.split("."))
    return Measure(path, direction != "lower" if colon else not lower)


def paths(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The paths of all numbers."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from paths(value, f"{prefix}{name}.")
        elif _is_number(value):
            yield f"{prefix}{name}"


def counts(metrics: Sequence[Metric], samples: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """For each of `FRACTIONS`, the number of images that it is the fraction of, or of samples if these are fewer.

    Args:
      metrics: of the evaluation; that of a value relative to a reference names its stream.
      samples: number of images that are scored.
      sizes: number of real images, by stream.
    """
    streams = {name: getattr(metric, "reference", "") for metric in metrics for name in metric.relative}
    references = {name: sizes[stream] for name, stream in streams.items() if stream in sizes}
    return {
        name: samples if kind == SAMPLES else min(samples, references[name])
        for name, kind in FRACTIONS.items()
        if kind == SAMPLES or name in references
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
