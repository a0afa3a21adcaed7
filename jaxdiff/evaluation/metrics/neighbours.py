"""Nearest neighbours in a feature space.

Distances are computed pair by pair, by `distances.distances_to`, in chunks. So a copy is at distance exactly 0, and
results depend neither on the size of the chunks nor on the order of the images.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from jaxdiff.errors import expect
from jaxdiff.evaluation.metrics.distances import distances_to

CHUNK = 512
"""Number of points whose distances to all others are in memory at once."""


def radii(
    points: Float[np.ndarray, "n d"], ks: Sequence[int], chunk: int = CHUNK
) -> Float64[np.ndarray, "n k"]:
    """Distance of each point to its k-th nearest other point, for each k."""
    for k in ks:
        expected = f"1 to {len(points) - 1}, for {len(points)} points"
        expect(1 <= k < len(points), "k", k, expected, "choose k in this range, or add points")
    found = np.empty((len(points), len(ks)))
    columns, measure = np.asarray(ks) - 1, distances_to(points)
    for rows in chunks(len(points), chunk):
        distances = measure(points[rows])
        distances[np.arange(len(distances)), np.arange(len(points))[rows]] = np.inf
        found[rows] = np.partition(distances, columns, axis=1)[:, columns]
    return found


def nearest(
    queries: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"], k: int = 1, chunk: int = CHUNK
) -> tuple[Float64[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Distances to the `k` nearest references of each query, nearest first, and their positions."""
    expected = f"1 to {len(references)}, the number of references"
    expect(1 <= k <= len(references), "k", k, expected, "choose a smaller k")
    found, indices = np.empty((len(queries), k)), np.empty((len(queries), k), int)
    measure = distances_to(references)
    for rows in chunks(len(queries), chunk):
        distances = measure(queries[rows])
        closest = np.argpartition(distances, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, closest, axis=1), axis=1)
        indices[rows] = np.take_along_axis(closest, order, axis=1)
        found[rows] = np.take_along_axis(distances, indices[rows], axis=1)
    return found, indices


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover ``range(n)`` in order."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
