"""Maximum mean discrepancy (MMD): a distance of two sets of vectors by a kernel (Gretton et al. 2012).

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

The unbiased estimate leaves pairs of a vector with itself out, and can be negative. The biased one keeps them.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64

from jaxdiff.evaluation.metrics.neighbours import CHUNK, chunks

Kernel = Callable[[Float64[np.ndarray, "n d"], Float64[np.ndarray, "m d"]], Float64[np.ndarray, "n m"]]


def polynomial(a: Float64[np.ndarray, "n d"], b: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    """The kernel of KID, ``(x . y / d + 1)^3`` (Bińkowski et al. 2018, section 4)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian(sigma: float) -> Kernel:
    """The kernel of CMMD, ``exp(-|x - y|^2 / (2 sigma^2))`` (Jayasumana et al. 2024, section 4)."""

    def kernel(a: Float64[np.ndarray, "n d"], b: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
        squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
        return np.exp(-np.maximum(squares, 0) / (2 * sigma**2))

    return kernel


def squared_mmd(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    kernel: Kernel,
    unbiased: bool = True,
    chunk: int = CHUNK,
) -> float:
    """The estimate of MMD^2, from kernels of `chunk` rows at once."""
    a, b = (np.asarray(rows, np.float64) for rows in (a, b))
    across = sum(kernel(a[rows], b).sum() for rows in chunks(len(a), chunk)) / (len(a) * len(b))
    within = sum(_within(rows, kernel, unbiased, chunk) for rows in (a, b))
    return float(within - 2 * across)


def _within(rows: Float64[np.ndarray, "n d"], kernel: Kernel, unbiased: bool, chunk: int) -> float:
    """Mean kernel of pairs of one set, with each row's pair with itself or without."""
    n, total = len(rows), 0.0
    for part in chunks(n, chunk):
        values = kernel(rows[part], rows)
        total += values.sum() - (np.trace(values, offset=part.start) if unbiased else 0.0)
    return total / (n * (n - 1) if unbiased else n * n)
