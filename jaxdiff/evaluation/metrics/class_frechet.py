"""Fréchet distance by class: a class that is wrong or collapsed shows, where the distance of all images hides it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdiff.errors import one_of
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Row
from jaxdiff.evaluation.metrics.collected import Collected, CollectedMetric, both
from jaxdiff.evaluation.metrics.frechet import distance_of_rows
from jaxdiff.evaluation.protocols import FeatureExtractor


@dataclasses.dataclass(frozen=True)
class ClassFrechet(CollectedMetric):
    """Fréchet distance of the samples of each class to the reference images of that class: mean, worst, and each.

    Classes with fewer than two images in either set are left out and counted. Classes have few images, so all values
    are far above zero; compare them with the real column, at equal numbers.

    Attributes:
      features: the feature space.
      reference: "test" or "train".
    """

    features: FeatureExtractor = Pixels()
    reference: str = "test"

    def __post_init__(self):
        one_of(self, "reference", ("test", "train"))

    def compute(self, state: Collected) -> dict[str, Any]:
        reference, samples = both(state, 2, "for a covariance")
        real, made = np.concatenate(state.reference_labels), np.concatenate(state.sample_labels)
        found, numbers, left_out = {}, {}, 0
        for label in np.unique(made).tolist():
            pair = samples[made == label], reference[real == label]
            if min(map(len, pair)) < 2:
                left_out += 1
                continue
            found[label] = distance_of_rows(*pair)
            numbers[label] = {"samples": len(pair[0]), "reference": len(pair[1])}
        worst = max(found, key=lambda label: found[label], default=None)
        values = {
            "mean": float(np.mean(list(found.values()))) if found else None,
            "worst": None if worst is None else found[worst],
            "worst_class": worst,
            "by_class": {str(label): value for label, value in found.items()},
            "n_by_class": {str(label): value for label, value in numbers.items()},
            "left_out": left_out,
        }
        return {"class_frechet": values}

    def table(self) -> Sequence[Row]:
        return [
            Row("Frechet distance by class, mean", "class_frechet.mean", decimals),
            Row("Frechet distance of the worst class", "class_frechet.worst", decimals),
        ]
