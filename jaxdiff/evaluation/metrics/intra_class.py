"""Distance of images of one class: diversity within classes, which collapse lowers.

With LPIPS it is the intra-class LPIPS, which GANs report as diversity (Choi et al. 2020, "StarGAN v2", section 4.1).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics.bootstrap import interval
from jaxdiff.evaluation.metrics.moments import check_finite
from jaxdiff.evaluation.protocols import FeatureExtractor, ImageDistance

Image = UInt8[np.ndarray, "height width channels"]


@dataclasses.dataclass(frozen=True)
class FeatureDistance:
    """Euclidean distance of two images in a feature space.

    Attributes:
      features: the feature space.
    """

    features: FeatureExtractor = Pixels()

    @property
    def name(self) -> str:
        return f"distance of {self.features.name}"

    def __call__(
        self, a: UInt8[np.ndarray, "n height width channels"], b: UInt8[np.ndarray, "n height width channels"]
    ) -> Float64[np.ndarray, "n"]:
        difference = self.features(a).astype(np.float64) - self.features(b)
        return np.linalg.norm(difference, axis=1)


class _State(NamedTuple):
    waiting: Mapping[int, Image] = {}  # never changed in place
    distances: tuple[Float64[np.ndarray, "n"], ...] = ()
    labels: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class IntraClassDistance(Metric):
    """Mean distance of pairs of samples of one class: the mean over classes, and the least.

    Consecutive samples of a class form pairs, so each sample is in one pair and the pairs are independent. One image of
    each class waits for its partner; no others are kept. Without classes, all samples are one class.

    Attributes:
      distance: LPIPS, or another distance of two images.
    """

    distance: ImageDistance = FeatureDistance()

    needs_all = True  # one number for each pair
    relative = ("intra_class_distance",)

    @property
    def streams(self) -> tuple[str, ...]:
        return ("samples",)

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        waiting, first, second, labels = dict(state.waiting), [], [], []
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            if label not in waiting:
                waiting[label] = image
                continue
            first.append(waiting.pop(label))
            second.append(image)
            labels.append(label)
        if not labels:
            return state._replace(waiting=waiting)
        found = np.asarray(self.distance(np.stack(first), np.stack(second)), np.float64)
        check_finite(found)
        return _State(waiting, (*state.distances, found), (*state.labels, np.asarray(labels)))

    def compute(self, state: _State) -> dict[str, Any]:
        if not state.labels:
            return {"intra_class_distance": None, "intra_class": {"pairs": 0}}
        distances, labels = np.concatenate(state.distances), np.concatenate(state.labels)
        by_class = {label: float(distances[labels == label].mean()) for label in np.unique(labels).tolist()}
        least = min(by_class, key=lambda label: by_class[label])
        more = {
            "least": by_class[least],
            "least_class": least,
            "by_class": {str(label): value for label, value in by_class.items()},
            "pairs": len(labels),
            "interval_of_pairs": interval(distances),
        }
        return {"intra_class_distance": float(np.mean(list(by_class.values()))), "intra_class": more}

    def table(self) -> Sequence[Row]:
        return [
            Row("intra-class distance", "intra_class_distance", decimals),
            Row("intra-class distance, least class", "intra_class.least", decimals),
        ]

    def settings(self) -> dict[str, Any]:
        return pair_settings(self.distance)


def pair_settings(distance: ImageDistance) -> dict[str, Any]:
    """The settings that a report states of a distance of two images."""
    found, hashed = {"pair_distance": distance.name}, getattr(distance, "hash", None)
    return {**found, "pair_distance_hash": str(hashed)} if hashed else found
