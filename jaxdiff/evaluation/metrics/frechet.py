"""Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, equation 6).

It is the *FID* only with the features of the Inception network, see `jaxdiff.evaluation.metrics.fid`. It falls as the
number of samples grows, so values compare only at equal numbers: n stands next to every value.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.errors import expect
from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics import moments, reference_files
from jaxdiff.evaluation.metrics.bootstrap import spread
from jaxdiff.evaluation.metrics.moments import Gaussian
from jaxdiff.evaluation.protocols import FeatureExtractor

STREAMS = ("train", "test")

NEGATIVE = 1e-3
"""Largest negative eigenvalue of a covariance, as a fraction of the largest: rounding to half precision gives less."""


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``.

    The last trace is the sum of the singular values of ``C_a^(1/2) C_b^(1/2)``. So no intermediate value is complex,
    and singular covariances (pixels that are always black, few samples) need no added diagonal. The time grows as d^3.
    """
    product = _root(a.covariance) @ _root(b.covariance)
    cross = np.linalg.svd(product, compute_uv=False).sum()
    shift = a.mean - b.mean
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(float(distance), 0.0)  # rounding makes the distance of equal sets some -1e-14


def distance_of_rows(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """`frechet_distance` of the moments of two sets of rows, without a matrix [d, d]: exact, and fast for few rows.

    With centred rows ``A`` and ``B``, ``tr (C_a C_b)^(1/2)`` is the sum of the singular values of the [n, m] matrix
    ``A B^T / ((n - 1) (m - 1))^(1/2)``.
    """
    a, b = (np.asarray(rows, np.float64) for rows in (a, b))
    shift = a.mean(axis=0) - b.mean(axis=0)
    left, right = ((rows - rows.mean(axis=0)) / np.sqrt(max(len(rows) - 1, 1)) for rows in (a, b))
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return max(float(shift @ shift + (left**2).sum() + (right**2).sum() - 2 * cross), 0.0)


def _root(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d d"]:
    """The symmetric square root of a positive semidefinite matrix.

    Eigenvalues below the rounding error of the largest one are zero: their roots would be 1e-8 of the largest, not
    1e-16, and a singular covariance has many of them.

    Raises:
      UserError: an eigenvalue is negative beyond rounding.
    """
    values, vectors = np.linalg.eigh(covariance)
    largest = float(np.abs(values).max(initial=0))
    least, expected = float(values.min(initial=0)), "a covariance without negative eigenvalues"
    fix = "name a file of statistics that is intact"
    expect(least >= -NEGATIVE * largest, "covariance", f"eigenvalue {least:g}", expected, fix)
    rounding = len(values) * np.finfo(np.float64).eps * largest
    return (vectors * np.sqrt(np.where(values > rounding, values, 0))) @ vectors.T


class _State(NamedTuple):
    reference: Gaussian | None
    samples: Gaussian | None = None
    rows: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Frechet(Metric):
    """Fréchet distance of the samples' features to those of a reference, from running means and covariances.

    Attributes:
      features: the feature space.
      reference: "test", "train", or an ``.npz`` file of statistics, see `reference_files`.
      key: name of the value in the report; ``KEY_n`` has the numbers of samples and of reference images.
      resamples: number of bootstrap resamples of the samples, for the standard error ``KEY_error``. 0 for none. They
        need the features of all samples, and a distance each. A standard error says nothing about the bias of small n.
    """

    features: FeatureExtractor = Pixels()
    reference: str = "test"
    key: str = "frechet"
    resamples: int = 0

    def __post_init__(self):
        expected, fix = "0, or 2 or more", "use 0 for none, or 100"
        expect(self.resamples == 0 or self.resamples > 1, "resamples", self.resamples, expected, fix)

    @property
    def needs_all(self) -> bool:
        return self.resamples > 0

    @property
    def streams(self) -> tuple[str, ...]:
        return ("samples", *({*STREAMS} & {self.reference}))

    def init(self) -> _State:
        return _State(None if self.reference in STREAMS else self.stored().gaussian)

    def stored(self) -> reference_files.Reference:
        """The statistics of the file `reference`.

        Raises:
          UserError: there is no such file, or it was made with other features, or by another profile.
        """
        return reference_files.load(self.reference).of(self.features)

    def update(self, state: _State, batch: Batch) -> _State:
        features = batch.features(self.features)
        slot = "samples" if batch.stream == "samples" else "reference"
        if slot == "samples" and state.reference is not None:
            self._check_width(features.shape[1], len(state.reference.mean))
        rows = (*state.rows, features) if self.needs_all and slot == "samples" else state.rows
        found = moments.union(getattr(state, slot), moments.fit(features))
        return state._replace(rows=rows, **{slot: found})

    def _check_width(self, width: int, reference: int) -> None:
        fix = "name statistics of the same feature space"
        expected = f"statistics of vectors of {width} numbers, as {self.features.name} gives"
        expect(width == reference, "reference", self.reference, expected, fix, f"{reference} numbers")

    def compute(self, state: _State) -> dict[str, Any]:
        found = {self.key: distance(state.samples, state.reference), f"{self.key}_n": _numbers(state)}
        if self.resamples:
            found[f"{self.key}_error"] = self._error(state)
        return found

    def _error(self, state: _State) -> float | None:
        if state.reference is None or not state.rows:
            return None
        rows, reference = np.concatenate(state.rows), state.reference

        def resampled(counts: np.ndarray) -> float:
            return frechet_distance(moments.fit(np.repeat(rows, counts, axis=0)), reference)

        return spread(resampled, len(rows), self.resamples)

    def table(self) -> Sequence[Row]:
        return [Row(f"{self.figure} to {self._target}", self.key, decimals)]

    @property
    def figure(self) -> str:
        """Name of the figure in tables."""
        return "Frechet distance"

    @property
    def _target(self) -> str:
        return self.reference if self.reference in STREAMS else "reference"

    def settings(self) -> dict[str, Any]:
        if self.reference in STREAMS:
            return {**describe(self.features), "reference": self.reference}
        stored = self.stored()
        return {**describe(self.features), "reference": stored.hash, "reference_file": self.reference}

    def notes(self, values: Mapping[str, Any]) -> Sequence[str]:
        numbers = values[f"{self.key}_n"]
        lines = [
            f"{self.figure}: {numbers['samples']} samples, {numbers['reference'] or 'unknown'} in the reference"
        ]
        if self.reference not in STREAMS and not self.stored().made:
            lines.append(f"{self.reference} does not state its features and profile: they were not compared")
        return lines


def distance(a: Gaussian | None, b: Gaussian | None) -> float | None:
    """`frechet_distance`; None if either set of rows is empty."""
    return None if a is None or b is None else frechet_distance(a, b)


def _numbers(state: _State) -> dict[str, int]:
    slots = {"samples": state.samples, "reference": state.reference}
    return {name: 0 if found is None else found.n for name, found in slots.items()}
