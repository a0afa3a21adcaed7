"""Two failures that look good by eye: all samples of a class are the same, or samples are training images."""

import numpy as np
from jaxtyping import Float, Float64, Integer

from jaxdiff.errors import require

NEAR_COPY = 1 / 3


def class_variances(features: Float[np.ndarray, "n d"], labels: Integer[np.ndarray, "n"]) -> dict[int, float]:
    """For each class, the trace of its covariance: the mean squared distance to the class mean (ddof=1)."""
    variances = {}
    for label in np.unique(labels):
        rows = features[labels == label]
        why = f"class {label} has one image, a spread needs two"
        require(len(rows) > 1, "n", len(features), why, "raise n")
        variances[int(label)] = float(rows.var(axis=0, ddof=1).sum())
    return variances


def class_spreads(
    samples: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, "n"],
    real: Float[np.ndarray, "m d"],
    real_labels: Integer[np.ndarray, "m"],
) -> dict[int, float]:
    """Variance of the samples of each class over that of the real images: 1 is right, 0 a collapsed class.

    Classes whose real images are all the same have no ratio and are left out.
    """
    reference = class_variances(real, real_labels)
    variances = class_variances(samples, labels)
    return {label: value / reference[label] for label, value in variances.items() if reference[label] > 0}


def memorisation(
    samples: Float64[np.ndarray, "n 2"], held_out: Float64[np.ndarray, "m 2"]
) -> dict[str, float | None]:
    """How close samples lie to the training images, measured by how close unseen real images lie.

    Args:
      samples: distances of each sample to the two nearest training images.
      held_out: the same for real test images.

    Returns:
      The medians of the distance to the nearest; their ratio (near 1 for a model that generalises, 0 for one
      that copies; None if the test images are copies themselves); and the shares of near copies: nearest
      training image three times closer than the second nearest (Yoon et al. 2023).
    """
    median, test_median = float(np.median(samples[:, 0])), float(np.median(held_out[:, 0]))
    return {
        "median_distance": median,
        "test_median_distance": test_median,
        "ratio": median / test_median if test_median > 0 else None,
        "near_copies": _near_copies(samples),
        "test_near_copies": _near_copies(held_out),
    }


def _near_copies(distances: Float64[np.ndarray, "n 2"]) -> float:
    return float(np.mean(distances[:, 0] <= NEAR_COPY * distances[:, 1]))
