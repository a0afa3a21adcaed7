"""Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, equation 6).

It is the *FID* only with the features of the Inception network and 50,000 samples. It falls as the number of samples
grows, so values compare only at equal numbers: state n next to every value.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Float64

from jaxdiff.errors import expect
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.protocols import FeatureExtractor


class Gaussian(NamedTuple):
    """Mean [d] and unbiased covariance [d, d] (ddof=1; zero for one row) of `n` rows of features, float64."""

    mean: Float64[np.ndarray, "d"]
    covariance: Float64[np.ndarray, "d d"]
    n: int


def fit(features: Float[np.ndarray, "n d"]) -> Gaussian:
    """Mean and covariance of rows that fit in memory."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / max(len(features) - 1, 1), len(features))


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


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``.

    The last trace is the sum of the singular values of ``C_a^(1/2) C_b^(1/2)``. So no intermediate value is complex,
    and singular covariances (pixels that are always black, few samples) need no added diagonal. The time grows as d^3:
    some seconds at d = 2048.
    """
    product = _root(a.covariance) @ _root(b.covariance)
    cross = np.linalg.svd(product, compute_uv=False).sum()
    shift = a.mean - b.mean
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(float(distance), 0.0)  # rounding makes the distance of equal sets some -1e-14


def _root(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d d"]:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def save(path: epath.PathLike, gaussian: Gaussian) -> None:
    """Write reference statistics: an ``.npz`` with the arrays ``mean``, ``covariance`` and ``n``."""
    with epath.Path(path).open("wb") as file:
        np.savez(file, **gaussian._asdict())


def load(path: epath.PathLike) -> Gaussian:
    """Read statistics that `save` has written.

    Raises:
      UserError: the file does not exist or lacks an array.
    """
    file = epath.Path(path).expanduser()
    expect(file.exists(), "reference", str(path), "'train', 'test' or an .npz file", "name one", "no file")
    with file.open("rb") as opened, np.load(opened) as arrays:
        missing = [name for name in Gaussian._fields if name not in arrays]
        fix = "write it with jaxdiff.evaluation.metrics.frechet.save"
        expect(not missing, "reference", str(path), f"the arrays {Gaussian._fields}", fix, f"no {missing}")
        return Gaussian(arrays["mean"], arrays["covariance"], int(arrays["n"]))


class _State(NamedTuple):
    reference: Gaussian | None
    samples: Gaussian | None = None


@dataclasses.dataclass(frozen=True)
class Frechet(Metric):
    """Fréchet distance of the samples' features to those of a reference, from running means and covariances.

    Attributes:
      features: the feature space.
      reference: "test", "train", or an ``.npz`` file of `save` with precomputed statistics.
      key: name of the value in the report.
    """

    features: FeatureExtractor = Pixels()
    reference: str = "test"
    key: str = "frechet"

    @property
    def streams(self) -> tuple[str, ...]:
        return ("samples", *({"train", "test"} & {self.reference}))

    def init(self) -> _State:
        return _State(None if self.reference in ("train", "test") else load(self.reference))

    def update(self, state: _State, batch: Batch) -> _State:
        slot = "samples" if batch.stream == "samples" else "reference"
        return state._replace(**{slot: union(getattr(state, slot), fit(batch.features(self.features)))})

    def compute(self, state: _State) -> dict[str, Any]:
        return {self.key: distance(state.samples, state.reference)}

    def table(self) -> Sequence[Row]:
        target = self.reference if self.reference in ("train", "test") else "reference"
        return [Row(f"Frechet distance to {target}", self.key, decimals)]

    def settings(self) -> dict[str, Any]:
        return {"features": self.features.name}


def union(a: Gaussian | None, b: Gaussian | None) -> Gaussian | None:
    """`merge`, where either set of rows may be empty (None)."""
    if a is None or b is None:
        return a or b
    return merge(a, b)


def distance(a: Gaussian | None, b: Gaussian | None) -> float | None:
    """`frechet_distance`; None if either set of rows is empty."""
    return None if a is None or b is None else frechet_distance(a, b)
