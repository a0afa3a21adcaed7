"""Clipped density and clipped coverage: fidelity and diversity as fractions of good samples (Salvy et al. 2025).

Density and coverage have no fixed scale, and one outlier with a large ball distorts both. Here the contribution of each
vector is at most 1, balls are no larger than the median, and the results are calibrated: a set of which a fraction f is
like the real one, and the rest far away, scores f.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.errors import one_of, positive
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Row
from jaxdiff.evaluation.metrics.bootstrap import interval
from jaxdiff.evaluation.metrics.collected import Collected, CollectedMetric, both, numbers
from jaxdiff.evaluation.metrics.distances import distances_to
from jaxdiff.evaluation.metrics.neighbours import CHUNK, chunks, radii
from jaxdiff.evaluation.protocols import FeatureExtractor


class Clipped(NamedTuple):
    """Clipped scores of one set of samples.

    Attributes:
      density: fraction of samples that are as close to real vectors as real ones are.
      coverage: fraction of the real distribution that samples reach as often as real vectors would.
      fidelity: the contribution of each sample to the density, before the clip at 1, [m].
    """

    density: float
    coverage: float
    fidelity: Float64[np.ndarray, "m"]


def clipped_scores(
    real: Float[np.ndarray, "n d"], samples: Float[np.ndarray, "m d"], k: int = 5, chunk: int = CHUNK
) -> Clipped:
    """Both scores.

    ``R`` is the distance of a real vector to its k-th nearest other one, ``r`` the smaller of ``R`` and the median of
    all ``R``. A sample's fidelity is ``min(1, balls / k)``, with the number of real balls of radius ``r`` around it,
    over the same of real vectors. The coverage of a real vector is ``min(1, samples / k)``, with the number of samples
    within ``R``, calibrated by `expected_coverage`.
    """
    large = radii(real, (k,), chunk)[:, 0]
    small = np.minimum(large, np.median(large))
    balls, inside, measure = np.zeros(len(samples)), np.zeros(len(real)), distances_to(real)
    for rows in chunks(len(samples), chunk):
        distances = measure(samples[rows])
        balls[rows] = (distances <= small).sum(axis=1)
        inside += (distances <= large).sum(axis=0)
    ideal = np.minimum(1, _real_balls(real, small, chunk) / k).mean()
    fidelity = np.minimum(1, balls / k) / ideal
    coverage = np.minimum(1, inside / k).mean()
    return Clipped(
        min(1.0, float(fidelity.mean())), calibrated(coverage, len(real), len(samples), k), fidelity
    )


def _real_balls(
    real: Float[np.ndarray, "n d"], radius: Float64[np.ndarray, "n"], chunk: int
) -> Float64[np.ndarray, "n"]:
    """Number of balls of other real vectors around each real vector."""
    found, measure = np.zeros(len(real)), distances_to(real)
    for rows in chunks(len(real), chunk):
        found[rows] = (measure(real[rows]) <= radius).sum(axis=1) - 1  # each is in its own ball
    return found


def expected_coverage(n: int, m: int, k: int) -> Float64[np.ndarray, "m_plus_1"]:
    """Expected uncalibrated coverage of n real vectors if 0, 1, ..., m of the samples are from the real distribution.

    The ball to the k-th of n - 1 neighbours has a probability of the law Beta(k, n - k), whatever the distribution. So
    the number of j good samples in it is beta-binomial, and the value is ``E min(number, k) / k``.
    """
    from scipy.stats import betabinom

    good, inside = np.arange(m + 1)[:, None], np.arange(k)[None]
    probability = betabinom.pmf(inside, good, k, n - k)
    return 1 - (probability * (k - inside)).sum(axis=1) / k


def calibrated(coverage: float, n: int, m: int, k: int) -> float:
    """The fraction of good samples at which this coverage is expected, at most 1."""
    return float(np.interp(coverage, expected_coverage(n, m, k), np.arange(m + 1) / m))


@dataclasses.dataclass(frozen=True)
class ClippedScores(CollectedMetric):
    """Clipped density and clipped coverage of the samples.

    Attributes:
      features: the feature space.
      k: number of neighbours.
      reference: "test" or "train".
    """

    features: FeatureExtractor = Pixels()
    k: int = 5
    reference: str = "test"

    relative = ("clipped_coverage",)

    def __post_init__(self):
        positive(self, "k")
        one_of(self, "reference", ("test", "train"))

    def compute(self, state: Collected) -> dict[str, Any]:
        reference, samples = both(state, self.k + 1, "more than k")
        found = clipped_scores(reference, samples, self.k)
        values = {"clipped_density": found.density, "clipped_coverage": found.coverage}
        return {**values, "clipped": {"n": numbers(state), "density_interval": interval(found.fidelity)}}

    def table(self) -> Sequence[Row]:
        return [
            Row(f"clipped {name} (k={self.k})", f"clipped_{name}", decimals)
            for name in ("density", "coverage")
        ]

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "k": self.k}
