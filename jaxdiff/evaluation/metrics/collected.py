"""Base of metrics that need the features of all samples and of all reference images at once."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from jaxdiff.errors import expect
from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.metric import Batch, Metric
from jaxdiff.evaluation.metrics.moments import check_finite
from jaxdiff.evaluation.protocols import FeatureExtractor


class Collected(NamedTuple):
    """Features of the batches so far, and labels of their rows."""

    reference: tuple[np.ndarray, ...] = ()
    samples: tuple[np.ndarray, ...] = ()
    reference_labels: tuple[np.ndarray, ...] = ()
    sample_labels: tuple[np.ndarray, ...] = ()


class CollectedMetric(Metric, Protocol):
    """A metric of two sets of features. Classes have the fields `features` and `reference`, and `compute`.

    The memory grows with the number of images: 50,000 vectors of 2,048 float32 numbers are 410 MB.
    """

    features: FeatureExtractor
    reference: str

    needs_all = True

    @property
    def streams(self) -> tuple[str, ...]:
        return (self.reference, "samples")

    def init(self) -> Collected:
        return Collected()

    def update(self, state: Collected, batch: Batch) -> Collected:
        features = batch.features(self.features)
        if batch.stream == "samples":
            labels = (*state.sample_labels, batch.labels)
            return state._replace(samples=(*state.samples, features), sample_labels=labels)
        labels = (*state.reference_labels, batch.labels)
        return state._replace(reference=(*state.reference, features), reference_labels=labels)

    def settings(self) -> dict[str, Any]:
        return {**describe(self.features), "reference": self.reference}


def both(state: Collected, least: int, why: str) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """The features of the reference and of the samples.

    Raises:
      UserError: one of them has fewer than `least` rows.
    """
    found = []
    for name, parts in (("reference", state.reference), ("samples", state.samples)):
        n = sum(map(len, parts))
        expect(n >= least, name, n, f"at least {least} images, {why}", "take 1000 or more")
        found.append(np.concatenate(parts))
        check_finite(found[-1])
    return found[0], found[1]


def numbers(state: Collected) -> dict[str, int]:
    """Numbers of samples and of reference images, which stand next to every value."""
    return {"samples": sum(map(len, state.samples)), "reference": sum(map(len, state.reference))}
