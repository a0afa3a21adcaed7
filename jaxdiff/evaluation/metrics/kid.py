"""KID: kernel inception distance, an unbiased distance that suits few samples (Bińkowski et al. 2018)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.errors import expect, one_of, positive
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import significant
from jaxdiff.evaluation.metric import Row
from jaxdiff.evaluation.metrics.bootstrap import SMALL
from jaxdiff.evaluation.metrics.collected import Collected, CollectedMetric, both, numbers
from jaxdiff.evaluation.metrics.fid import Fid
from jaxdiff.evaluation.metrics.mmd import polynomial, squared_mmd
from jaxdiff.evaluation.protocols import FeatureExtractor


def kid_of_subsets(
    samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"], subsets: int, size: int, seed: int = 0
) -> Float64[np.ndarray, "subsets"]:
    """Unbiased MMD^2 between random subsets of `size` rows, each drawn without replacement from either set."""
    generator = np.random.default_rng(seed)

    def drawn(rows: np.ndarray) -> np.ndarray:
        return rows[generator.choice(len(rows), size, replace=False)]

    return np.array([squared_mmd(drawn(samples), drawn(real), polynomial) for _ in range(subsets)])


@dataclasses.dataclass(frozen=True)
class Kid(CollectedMetric):
    """Kernel distance of the samples to a reference: mean and deviation over subsets, and the value of all of few rows.

    It is called KID in the features of Inception-v3 only, and *kernel distance* elsewhere. Zero is expected of equal
    distributions at any number of samples, so values of different numbers compare.

    Attributes:
      features: the feature space.
      reference: "test" or "train".
      subsets: number of subsets, for the mean and its deviation.
      subset_size: rows of a subset. Sets with fewer rows are used whole.
      seed: seed of the subsets.
      key: name of the value in the report.
    """

    features: FeatureExtractor = Pixels()
    reference: str = "test"
    subsets: int = 100
    subset_size: int = 1000
    seed: int = 0
    key: str = "kid"

    def __post_init__(self):
        positive(self, "subsets")
        one_of(self, "reference", ("test", "train"))
        expect(self.subset_size > 1, "subset_size", self.subset_size, "at least 2", "use 1000")

    def compute(self, state: Collected) -> dict[str, Any]:
        reference, samples = both(state, 2, "for pairs")
        size = min(self.subset_size, len(reference), len(samples))
        found = kid_of_subsets(samples, reference, self.subsets, size, self.seed)
        few = max(len(samples), len(reference)) <= SMALL
        whole = squared_mmd(samples, reference, polynomial) if few else None
        values = {"value": float(found.mean()), "deviation": float(found.std()), "of_all": whole}
        return {self.key: {**values, "subset_size": size, "n": numbers(state)}}

    def table(self) -> Sequence[Row]:
        name = "KID" if Fid.space in self.features.name else "kernel distance"
        return [
            Row(f"{name} to {self.reference}", f"{self.key}.value", significant),
            Row(f"{name}, deviation of subsets", f"{self.key}.deviation", significant),
        ]

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "kid_subsets": f"{self.subsets} of {self.subset_size}, seed {self.seed}",
        }
