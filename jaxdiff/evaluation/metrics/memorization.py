"""Memorization: whether samples are copies of training images."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int, UInt8

from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics.neighbours import nearest
from jaxdiff.evaluation.protocols import FeatureExtractor

NEAR_COPY = 1 / 3
"""A near copy: the nearest training image is this much closer than the second nearest (Yoon et al. 2023)."""


def memorization(
    samples: Float64[np.ndarray, "n 2"], held_out: Float64[np.ndarray, "m 2"]
) -> dict[str, float | None]:
    """Distances of samples to the training images, relative to those of unseen real images.

    Args:
      samples: distances of each sample to the two nearest training images.
      held_out: the same for real test images.

    Returns:
      median_distance, test_median_distance: medians of the distance to the nearest training image.
      ratio: ratio of the medians: near 1 for a model that generalizes, 0 for one that copies; None if the test images
        are copies themselves.
      near_copies, test_near_copies: fractions of near copies, see `NEAR_COPY`.
    """
    median, test_median = float(np.median(samples[:, 0])), float(np.median(held_out[:, 0]))
    return {
        "median_distance": median,
        "test_median_distance": test_median,
        "ratio": median / test_median if test_median > 0 else None,
        "near_copies": _near_copies(samples),
        "test_near_copies": _near_copies(held_out),
    }


class _State(NamedTuple):
    train: tuple[np.ndarray, ...] = ()  # features
    digests: frozenset[bytes] = frozenset()  # of training images
    test: tuple[Float64[np.ndarray, "m 2"], ...] = ()  # distances
    samples: tuple[Float64[np.ndarray, "n 2"], ...] = ()
    neighbours: tuple[Int[np.ndarray, "n"], ...] = ()
    copies: int = 0


@dataclasses.dataclass(frozen=True)
class Memorization(Metric):
    """Distances of samples to their nearest training images, see `memorization`; and the fraction of exact copies.

    The features of all training images are kept; of test images and samples only their two smallest distances.

    Attributes:
      features: the feature space.
    """

    features: FeatureExtractor = Pixels()

    needs_all = True

    @property
    def streams(self) -> tuple[str, ...]:
        return ("train", "test", "samples")

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        features = batch.features(self.features)
        if batch.stream == "train":
            digests = state.digests.union(_digests(batch.images))
            return state._replace(train=(*state.train, features), digests=digests)
        distances, neighbours = nearest(features, state.train[0], 2)
        if batch.stream == "test":
            return state._replace(test=(*state.test, distances))
        return state._replace(
            samples=(*state.samples, distances),
            neighbours=(*state.neighbours, neighbours[:, 0]),
            copies=state.copies + sum(digest in state.digests for digest in _digests(batch.images)),
        )

    def finish(self, state: _State, stream: str) -> _State:
        return state._replace(train=(np.concatenate(state.train),)) if stream == "train" else state

    def compute(self, state: _State) -> dict[str, Any]:
        samples, test = np.concatenate(state.samples), np.concatenate(state.test)
        copies = {"exact_copies": state.copies / len(samples)}
        return {"memorization": {**memorization(samples, test), **copies}}

    def nearest_train(self, state: _State) -> Int[np.ndarray, "n"]:
        """Position of the nearest training image of each sample."""
        return np.concatenate(state.neighbours)

    def table(self) -> Sequence[Row]:
        return [
            Row("distance to training set / test's", "memorization.ratio", decimals),
            Row("exact copies", "memorization.exact_copies", decimals),
        ]

    def settings(self) -> dict[str, Any]:
        return describe(self.features)


def _near_copies(distances: Float64[np.ndarray, "n 2"]) -> float:
    return float(np.mean(distances[:, 0] <= NEAR_COPY * distances[:, 1]))


def _digests(images: UInt8[np.ndarray, "n height width channels"]) -> list[bytes]:
    """A hash of each image, equal only for images that are equal in every bit."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
