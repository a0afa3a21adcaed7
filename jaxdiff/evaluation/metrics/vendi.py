"""Vendi score: the effective number of different images in a set (Friedman & Dieng 2023).

    VS = exp(- sum_i l_i log l_i),    l: eigenvalues of K / n,    K_ij = cosine of images i and j

n equal images score 1, n orthogonal ones n. It uses no reference and sees no quality: noise is diverse.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics.cmmd import unit
from jaxdiff.evaluation.protocols import FeatureExtractor


def vendi_score(features: Float[np.ndarray, "n d"]) -> float:
    """The score of vectors that fit in memory."""
    vectors = unit(features)
    return _score(vectors.T @ vectors / len(vectors))


def _score(second_moment: Float64[np.ndarray, "d d"]) -> float:
    """``X^T X / n`` has the nonzero eigenvalues of ``X X^T / n``: the size of the matrix is d, not n."""
    values = np.linalg.eigvalsh(second_moment)
    values = values[values > len(values) * np.finfo(np.float64).eps * values.max(initial=0)]
    return float(np.exp(-(values * np.log(values)).sum()))


class _Sum(NamedTuple):
    products: Float64[np.ndarray, "d d"]
    n: int


@dataclasses.dataclass(frozen=True)
class Vendi(Metric):
    """Vendi score of the samples, with the cosine of features; streamed, since it needs their second moment only.

    The score grows with n until it saturates. So it is also reported as a fraction of the score of as many real images.

    Attributes:
      features: the feature space. In features without negative values all cosines are large and scores small.
    """

    features: FeatureExtractor = Pixels()

    relative = ("vendi",)

    @property
    def streams(self) -> tuple[str, ...]:
        return ("samples",)

    def init(self) -> _Sum | None:
        return None

    def update(self, state: _Sum | None, batch: Batch) -> _Sum:
        vectors = unit(batch.features(self.features))
        products = vectors.T @ vectors
        if state is None:
            return _Sum(products, len(vectors))
        return _Sum(state.products + products, state.n + len(vectors))

    def compute(self, state: _Sum | None) -> dict[str, Any]:
        n = 0 if state is None else state.n
        return {"vendi": None if state is None else _score(state.products / n), "vendi_n": n}

    def table(self) -> Sequence[Row]:
        return [Row("Vendi score", "vendi", decimals)]

    def settings(self) -> dict[str, Any]:
        return describe(self.features)
