"""Measures by nearest neighbours: fidelity and variety as two numbers, and distances to the training set.

Distances are taken pair by pair (not through a matrix product), so that a copy is at distance exactly 0 and a
result depends neither on the size of the chunks nor on the order of the images.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from jaxdiff.errors import require

CHUNK = 512


class ManifoldScores(NamedTuple):
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A set's manifold is the union of the closed balls around its points that reach to their k-th nearest
    neighbour in the set, the point itself not counted.

      precision: share of the generated points on the real manifold.
      recall: share of the real points on the generated manifold.
      density: number of real balls around a generated point, over k; can exceed 1.
      coverage: share of the real balls that hold a generated point.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"], k: int, chunk: int = CHUNK
) -> tuple[float, float]:
    """Precision and recall of `generated` for `real` features. See `ManifoldScores`."""
    scores = manifold_scores(real, generated, (k,), chunk)[k]
    return scores.precision, scores.recall


def density_coverage(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"], k: int, chunk: int = CHUNK
) -> tuple[float, float]:
    """Density and coverage of `generated` for `real` features. See `ManifoldScores`."""
    scores = manifold_scores(real, generated, (k,), chunk)[k]
    return scores.density, scores.coverage


def manifold_scores(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"], ks: Sequence[int], chunk: int = CHUNK
) -> dict[int, ManifoldScores]:
    """All four measures for several k at the cost of one."""
    from scipy.spatial.distance import cdist

    real_radii, generated_radii = radii(real, ks, chunk), radii(generated, ks, chunk)
    precise, balls = np.zeros(len(ks), int), np.zeros(len(ks), int)
    recalled, covered = np.zeros((len(ks), len(real)), bool), np.zeros((len(ks), len(real)), bool)
    for rows in _chunks(len(generated), chunk):
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


def radii(
    points: Float[np.ndarray, "n d"], ks: Sequence[int], chunk: int = CHUNK
) -> Float64[np.ndarray, "n k"]:
    """Distance of each point to its k-th nearest other point, for each k."""
    from scipy.spatial.distance import cdist

    for k in ks:
        require(1 <= k < len(points), "k", k, f"there are {len(points)} points", "take k from 1 to one less")
    found = np.empty((len(points), len(ks)))
    columns = np.asarray(ks) - 1
    for rows in _chunks(len(points), chunk):
        distances = cdist(points[rows], points)
        distances[np.arange(len(distances)), np.arange(len(points))[rows]] = np.inf
        found[rows] = np.partition(distances, columns, axis=1)[:, columns]
    return found


def nearest(
    queries: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"], k: int = 1, chunk: int = CHUNK
) -> tuple[Float64[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Distances to the `k` nearest references of each query, nearest first, and which they are."""
    from scipy.spatial.distance import cdist

    require(1 <= k <= len(references), "k", k, f"there are {len(references)} references", "take a smaller k")
    found, indices = np.empty((len(queries), k)), np.empty((len(queries), k), int)
    for rows in _chunks(len(queries), chunk):
        distances = cdist(queries[rows], references)
        closest = np.argpartition(distances, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, closest, axis=1), axis=1)
        indices[rows] = np.take_along_axis(closest, order, axis=1)
        found[rows] = np.take_along_axis(distances, indices[rows], axis=1)
    return found, indices


def nearest_distances(
    queries: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"], chunk: int = CHUNK
) -> Float64[np.ndarray, "n"]:
    """Euclidean distance of each query to the nearest reference."""
    return nearest(queries, references, 1, chunk)[0][:, 0]


def members(images: np.ndarray, references: np.ndarray) -> Bool[np.ndarray, "n"]:
    """Which of the images equal one of the references in every bit."""
    known = {reference.tobytes() for reference in references}
    return np.array([image.tobytes() in known for image in images], bool)


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
