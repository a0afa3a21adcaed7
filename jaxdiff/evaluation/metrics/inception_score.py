"""Inception score (IS): samples are classified with confidence, and into many classes (Salimans et al. 2016).

    IS = exp(E KL(p(y | x) || p(y)))

It uses no real image: it sees neither whether samples are like the data nor diversity within a class.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.errors import expect
from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.protocols import FeatureExtractor

SPACE = "Inception-v3 logits (IS)"
"""What the name of the logits contains: without the bias of the classes, as in the published score."""


def inception_score(
    logits: Float[np.ndarray, "n classes"], splits: int = 10
) -> Float64[np.ndarray, "splits"]:
    """The score of consecutive parts of equal size, from 1 to the number of classes."""
    from scipy.special import log_softmax

    log_p = log_softmax(logits.astype(np.float64), axis=1)
    ends = [len(log_p) * i // splits for i in range(splits + 1)]
    return np.array([_score(log_p[first:end]) for first, end in itertools.pairwise(ends)])


def _score(log_p: Float64[np.ndarray, "n classes"]) -> float:
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    seen = marginal > 0
    divergence = (p * log_p).sum(axis=1).mean() - marginal[seen] @ np.log(marginal[seen])
    return float(np.exp(divergence))


@dataclasses.dataclass(frozen=True)
class InceptionScore(Metric):
    """Inception score of the samples: mean and deviation over consecutive parts.

    Attributes:
      logits: the outputs of Inception-v3 before the softmax, [n, 1008]; other spaces are refused.
      splits: number of parts. Fewer samples per part give a lower score, so 50,000 samples in 10 parts are usual.
    """

    logits: FeatureExtractor = Pixels()
    splits: int = 10

    needs_all = True

    def __post_init__(self):
        expect(self.splits > 0, "splits", self.splits, "a number of parts > 0", "use 10")
        expected, fix = f"a feature space with {SPACE!r} in its name", "use this output of the network"
        expect(SPACE in self.logits.name, "logits", self.logits.name, expected, fix)

    @property
    def streams(self) -> tuple[str, ...]:
        return ("samples",)

    def check(self, samples: int) -> None:
        least = 2 * self.splits
        expect(samples >= least, "samples", samples, f"at least {least}, two for each part", "use 50000")

    def init(self) -> tuple[np.ndarray, ...]:
        return ()

    def update(self, state: tuple[np.ndarray, ...], batch: Batch) -> tuple[np.ndarray, ...]:
        return (*state, batch.features(self.logits))

    def compute(self, state: tuple[np.ndarray, ...]) -> dict[str, Any]:
        logits = np.concatenate(state)
        self.check(len(logits))
        scores = inception_score(logits, self.splits)
        values = {"value": float(scores.mean()), "deviation": float(scores.std()), "n": len(logits)}
        return {"inception_score": values}

    def table(self) -> Sequence[Row]:
        return [Row("inception score", "inception_score.value", decimals)]

    def settings(self) -> dict[str, Any]:
        return {**describe(self.logits), "inception_score_splits": self.splits}
