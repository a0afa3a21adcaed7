"""Precision and recall, density and coverage: fidelity and diversity as separate numbers, by nearest neighbours."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdiff.errors import expect, one_of, positive
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
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


def manifold_scores(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"], ks: Sequence[int], chunk: int = CHUNK
) -> dict[int, ManifoldScores]:
    """All four scores for several k at the cost of one."""
    from scipy.spatial.distance import cdist

    real_radii, generated_radii = radii(real, ks, chunk), radii(generated, ks, chunk)
    precise, balls = np.zeros(len(ks), int), np.zeros(len(ks), int)
    recalled, covered = np.zeros((len(ks), len(real)), bool), np.zeros((len(ks), len(real)), bool)
    for rows in chunks(len(generated), chunk):
        distances = cdist(generated[rows], real)
        for i in range(len(ks)):
            in_real_ball = distances <= real_radii[:, i]
            precise[i] += in_real_ball.any(axis=1).sum()
            balls[i] += in_real_ball.sum()
            covered[i] |= in_real_ball.any(axis=0)
            recalled[i] |= (distances <= generated_radii[rows, i, None]).any(axis=0)
    m = len(generated)
    return {
        k: ManifoldScores(
            float(precise[i] / m),
            float(recalled[i].mean()),
            float(balls[i] / (k * m)),
            float(covered[i].mean()),
        )
        for i, k in enumerate(ks)
    }


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
        scores = {k: found._asdict() for k, found in manifold_scores(reference, samples, self.ks).items()}
        return {**scores[self.k], "by_k": {str(k): found for k, found in scores.items()}}

    def table(self) -> Sequence[Row]:
        return [Row(f"{name} (k={self.k})", name, decimals) for name in ManifoldScores._fields]

    def settings(self) -> dict[str, Any]:
        return {"features": self.features.name, "k": self.k}
