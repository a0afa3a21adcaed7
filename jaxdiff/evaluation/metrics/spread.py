"""Spread: whether the samples of a class are as diverse as its real images. A collapsed class has spread 0."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.errors import expect
from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.protocols import FeatureExtractor


class Scatter(NamedTuple):
    """Running variance of feature vectors.

    Attributes:
      mean: mean of the rows so far, [d].
      squares: sum of the squared distances of the rows to their mean.
      n: number of rows.
    """

    mean: Float64[np.ndarray, "d"]
    squares: float
    n: int

    @property
    def variance(self) -> float:
        """Trace of the unbiased covariance (ddof=1): the mean squared distance to the mean."""
        return self.squares / (self.n - 1)


Scatters = Mapping[Hashable, Scatter]
"""The running variance of each group of images."""


def scatter_of(features: Float[np.ndarray, "n d"]) -> Scatter:
    """The variance of rows that fit in memory."""
    mean = features.mean(axis=0, dtype=np.float64)
    return Scatter(mean, float(((features - mean) ** 2).sum()), len(features))


def merge(a: Scatter, b: Scatter) -> Scatter:
    """The variance of the union of two sets of rows (Chan, Golub & LeVeque 1983, equation 2.1)."""
    n, shift = a.n + b.n, b.mean - a.mean
    between = float(shift @ shift) * (a.n * b.n / n)
    return Scatter(a.mean + shift * (b.n / n), a.squares + b.squares + between, n)


def add(scatters: Scatters, groups: Sequence[Hashable], features: Float[np.ndarray, "n d"]) -> Scatters:
    """The scatters with one more batch, whose rows belong to these groups."""
    rows: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        rows.setdefault(group, []).append(i)
    found = dict(scatters)
    for group, chosen in rows.items():
        new = scatter_of(features[chosen])
        found[group] = merge(found[group], new) if group in found else new
    return found


class _State(NamedTuple):
    train: Scatters = {}  # noqa: RUF012  (never changed in place)
    samples: Scatters = {}  # noqa: RUF012


@dataclasses.dataclass(frozen=True)
class ClassSpread(Metric):
    """Variance of the samples of each class over that of its training images: 1 is right, 0 a collapsed class.

    Classes whose training images are all equal have no ratio and are left out.

    Attributes:
      features: the feature space.
    """

    features: FeatureExtractor = Pixels()

    @property
    def streams(self) -> tuple[str, ...]:
        return ("train", "samples")

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        scatters = getattr(state, batch.stream)
        found = add(scatters, batch.labels.tolist(), batch.features(self.features))
        return state._replace(**{batch.stream: found})

    def compute(self, state: _State) -> dict[str, Any]:
        train, samples = (_variances(scatters) for scatters in state)
        spreads = {label: value / train[label] for label, value in samples.items() if train.get(label, 0) > 0}
        by_class = {str(label): spread for label, spread in sorted(spreads.items())}
        return {"spread": {"minimum": min(spreads.values(), default=None), "by_class": by_class}}

    def table(self) -> Sequence[Row]:
        return [Row("least class spread / real", "spread.minimum", decimals)]

    def settings(self) -> dict[str, Any]:
        return describe(self.features)


def _variances(scatters: Scatters) -> dict[Any, float]:
    for label, scatter in scatters.items():
        expected, fix = "two images or more of each class", "take more samples"
        expect(
            scatter.n > 1,
            "samples",
            sum(s.n for s in scatters.values()),
            expected,
            fix,
            f"one of class {label}",
        )
    return {label: scatter.variance for label, scatter in scatters.items()}
