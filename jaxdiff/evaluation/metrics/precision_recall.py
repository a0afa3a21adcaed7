"""Precision and recall, density and coverage: fidelity and diversity as separate numbers, by nearest neighbours."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from jaxdiff.errors import expect, one_of, positive
from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics.bootstrap import interval
from jaxdiff.evaluation.metrics.distances import distances_to
from jaxdiff.evaluation.metrics.neighbours import CHUNK, chunks, radii
from jaxdiff.evaluation.protocols import FeatureExtractor

ALWAYS_KS = (3, 4, 5)
"""Numbers of neighbours that are always reported."""


class ManifoldScores(NamedTuple):
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The manifold of a set is the union of closed balls around its points. The radius of a ball is the distance to the
    k-th nearest other point of the set.

    Attributes:
      precision: fraction of the generated points on the real manifold.
      recall: fraction of the real points on the generated manifold.
      density: mean number of real balls around a generated point, over k; can exceed 1.
      coverage: fraction of the real balls that hold a generated point.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Contributions(NamedTuple):
    """The contribution of each vector to the scores, of which they are the means.

    Attributes:
      precision: whether a generated vector is on the real manifold, [m].
      recall: whether a real vector is on the generated manifold, [n].
      density: number of real balls around a generated vector over k, [m].
      coverage: whether a real ball holds a generated vector, [n].
    """

    precision: Bool[np.ndarray, "m"]
    recall: Bool[np.ndarray, "n"]
    density: Float64[np.ndarray, "m"]
    coverage: Bool[np.ndarray, "n"]

    @property
    def scores(self) -> ManifoldScores:
        """The means."""
        return ManifoldScores(*(float(values.mean()) for values in self))


def contributions(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"], ks: Sequence[int], chunk: int = CHUNK
) -> dict[int, Contributions]:
    """What each vector adds to the scores, for several k at the cost of one."""
    real_radii, generated_radii = radii(real, ks, chunk), radii(generated, ks, chunk)
    n, m, measure = len(real), len(generated), distances_to(real)
    found = {k: Contributions(*(np.zeros(size, kind) for size, kind in ((m, bool), (n, bool), (m, float), (n, bool))))
             for k in ks}  # fmt: skip
    for rows in chunks(m, chunk):
        distances = measure(generated[rows])
        for i, k in enumerate(ks):
            in_real_ball = distances <= real_radii[:, i]
            found[k].precision[rows] = in_real_ball.any(axis=1)
            found[k].density[rows] = in_real_ball.sum(axis=1) / k
            found[k].coverage[:] |= in_real_ball.any(axis=0)
            found[k].recall[:] |= (distances <= generated_radii[rows, i, None]).any(axis=0)
    return found


def manifold_scores(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"], ks: Sequence[int], chunk: int = CHUNK
) -> dict[int, ManifoldScores]:
    """All four scores for several k at the cost of one."""
    return {k: found.scores for k, found in contributions(real, generated, ks, chunk).items()}


class _State(NamedTuple):
    reference: tuple[np.ndarray, ...] = ()
    samples: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class PrecisionRecall(Metric):
    """Precision, recall, density and coverage of the samples. See `ManifoldScores`.

    The features of all samples and of the reference are kept: the neighbours of a point are known only at the end.

    Attributes:
      features: the feature space.
      k: number of neighbours of the headline values; 3, 4 and 5 are always reported as well.
      reference: "test" or "train".
    """

    features: FeatureExtractor = Pixels()
    k: int = 5
    reference: str = "test"

    needs_all = True
    relative = ("recall", "coverage")

    def __post_init__(self):
        positive(self, "k")
        one_of(self, "reference", ("test", "train"))

    @property
    def ks(self) -> list[int]:
        """All numbers of neighbours that are reported."""
        return sorted({*ALWAYS_KS, self.k})

    @property
    def streams(self) -> tuple[str, ...]:
        return (self.reference, "samples")

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        slot = "samples" if batch.stream == "samples" else "reference"
        return state._replace(**{slot: (*getattr(state, slot), batch.features(self.features))})

    def compute(self, state: _State) -> dict[str, Any]:
        reference, samples = np.concatenate(state.reference), np.concatenate(state.samples)
        for name, values in (("samples", samples), ("reference", reference)):
            expected = f"more than {max(self.ks)} images, the largest k"
            expect(len(values) > max(self.ks), name, len(values), expected, "take 1000 or more")
        found = contributions(reference, samples, self.ks)
        scores = {k: each.scores._asdict() for k, each in found.items()}
        intervals = {name: interval(values.astype(float)) for name, values in found[self.k]._asdict().items()}
        numbers = {"samples": len(samples), "reference": len(reference)}
        return {
            **scores[self.k],
            "by_k": {str(k): each for k, each in scores.items()},
            "precision_recall": {"n": numbers, "intervals": intervals},
        }

    def table(self) -> Sequence[Row]:
        return [Row(f"{name} (k={self.k})", name, decimals) for name in ManifoldScores._fields]

    def settings(self) -> dict[str, Any]:
        return {**describe(self.features), "reference": self.reference, "k": self.k}
