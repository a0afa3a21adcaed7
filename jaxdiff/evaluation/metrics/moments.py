"""Moments of feature vectors, streamed: mean and covariance in float64, merged over batches, devices and processes.

Sums run on the host: accelerators have no float64, or a slow one. Each batch is centred before it is squared, so large
means cost no digits.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.errors import expect


class Gaussian(NamedTuple):
    """Mean [d] and unbiased covariance [d, d] (ddof=1; zero for one row) of `n` rows of features, float64.

    `n` is 0 where a foreign file of statistics does not state it. Such statistics cannot be merged.
    """

    mean: Float64[np.ndarray, "d"]
    covariance: Float64[np.ndarray, "d d"]
    n: int


def fit(features: Float[np.ndarray, "n d"]) -> Gaussian:
    """Mean and covariance of rows that fit in memory."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    check_finite(mean)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / max(len(features) - 1, 1), len(features))


def check_finite(values: Float[np.ndarray, "..."]) -> None:
    """Raise `UserError` unless features, or sums of them, are finite."""
    fix = "use weights and images whose features are finite, in float32"
    expect(bool(np.isfinite(values).all()), "features", "", "finite numbers", fix, "others")


def merge(a: Gaussian, b: Gaussian) -> Gaussian:
    """Mean and covariance of the union of two sets of rows (Chan, Golub & LeVeque 1983, equation 2.1)."""
    n = a.n + b.n
    shift = b.mean - a.mean
    mean = a.mean + shift * (b.n / n)
    scatter = (a.n - 1) * a.covariance + (b.n - 1) * b.covariance + np.outer(shift, shift) * (a.n * b.n / n)
    return Gaussian(mean, scatter / (n - 1), n)


def fit_stream(batches: Iterable[Float[np.ndarray, "_ d"]]) -> Gaussian:
    """Mean and covariance of rows that come in batches, each of one row or more."""
    return functools.reduce(merge, map(fit, batches))


def union(a: Gaussian | None, b: Gaussian | None) -> Gaussian | None:
    """`merge`, where either set of rows may be empty (None)."""
    if a is None or b is None:
        return a or b
    return merge(a, b)


def fit_shards(features: jax.Array, n: int) -> Gaussian | None:
    """Mean and covariance of the first `n` rows of an array that is split over devices; no device sees other rows.

    Args:
      features: [rows, d]; the rows from `n` on are padding and are left out. Copies of a shard count once.
      n: number of rows that count, of all processes together.

    Returns:
      The moments of the rows of this process, for `over_processes`; None if it has none.
    """
    shards = sorted(
        (shard for shard in features.addressable_shards if shard.replica_id == 0),
        key=lambda shard: shard.index[0].start or 0,
    )
    kept = (np.asarray(shard.data)[: max(0, n - (shard.index[0].start or 0))] for shard in shards)
    return functools.reduce(union, (fit(rows) for rows in kept if len(rows)), None)


def over_processes(found: Gaussian | None) -> Gaussian | None:
    """Mean and covariance of the rows of all processes, the same bits in each of them.

    Args:
      found: the moments of the rows of this process; None if it has none.
    """
    if jax.process_count() == 1:
        return found
    return functools.reduce(union, map(_unpacked, _gathered(_packed(found))), None)


def _packed(found: Gaussian | None) -> np.ndarray:
    parts = ([0.0], [], []) if found is None else ([float(found.n)], found.mean, found.covariance.ravel())
    return np.concatenate(parts)


def _unpacked(values: np.ndarray) -> Gaussian | None:
    n, rest = int(values[0]), values[1:]
    if n == 0:
        return None
    d = int(np.sqrt(len(rest)))  # d + d^2 values
    return Gaussian(rest[:d], rest[d:].reshape(d, d), n)


def _gathered(values: np.ndarray) -> list[np.ndarray]:
    """The float64 values of each process. Bytes are sent, since JAX would round float64 to float32."""
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.array([len(values)], np.int32)).ravel()
    padded = np.zeros(int(sizes.max()))
    padded[: len(values)] = values
    received = np.asarray(multihost_utils.process_allgather(padded.view(np.uint32)))
    rows = np.ascontiguousarray(received.reshape(len(sizes), -1)).view(np.float64)
    return [row[:size] for row, size in zip(rows, sizes, strict=True)]
