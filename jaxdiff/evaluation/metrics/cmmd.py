"""CMMD: maximum mean discrepancy of CLIP embeddings (Jayasumana et al. 2024, "Rethinking FID")."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.errors import expect, one_of
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Row
from jaxdiff.evaluation.metrics.collected import Collected, CollectedMetric, both, numbers
from jaxdiff.evaluation.metrics.mmd import gaussian, squared_mmd
from jaxdiff.evaluation.protocols import FeatureExtractor

SIGMA, FACTOR = 10.0, 1000.0
"""Width of the kernel, and the factor of published values."""


def unit(vectors: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """The vectors at length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def cmmd(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], unbiased: bool = False) -> float:
    """1000 times MMD^2 of unit vectors, by a Gaussian kernel of width 10. Published values are the biased estimate."""
    return FACTOR * squared_mmd(unit(a), unit(b), gaussian(SIGMA), unbiased)


@dataclasses.dataclass(frozen=True)
class Cmmd(CollectedMetric):
    """CMMD of the samples to a reference: the published, biased estimate and the unbiased one.

    Attributes:
      features: image embeddings of a CLIP; other spaces are refused. Published values are of ViT-L/14 at 336 pixels.
      reference: "test" or "train".
    """

    features: FeatureExtractor = Pixels()
    reference: str = "test"

    def __post_init__(self):
        one_of(self, "reference", ("test", "train"))
        expected, fix = "image embeddings of CLIP, the space of CMMD", "use these, or metrics.kid:Kid"
        expect("CLIP image" in self.features.name, "features", self.features.name, expected, fix)

    def compute(self, state: Collected) -> dict[str, Any]:
        reference, samples = both(state, 2, "for pairs")
        values = {"value": cmmd(samples, reference), "unbiased": cmmd(samples, reference, unbiased=True)}
        return {"cmmd": {**values, "n": numbers(state)}}

    def table(self) -> Sequence[Row]:
        return [Row(f"CMMD to {self.reference}", "cmmd.value", decimals)]
