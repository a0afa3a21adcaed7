"""Reference statistics as files: mean, covariance and number of features, with how they were made.

A file is an ``.npz`` with ``mu`` and ``sigma``, as pytorch-fid and EDM write them, and with ``n`` and ``made``. Files
of pytorch-fid, EDM and ADM are read too. They state neither n nor how they were made.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxdiff.errors import UserError, expect
from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.metrics.moments import Gaussian
from jaxdiff.evaluation.protocols import FeatureExtractor

SPELLINGS = (("mu", "sigma"), ("mean", "covariance"))
"""Names of mean and covariance: of other libraries and this one, and of jaxdiff 0.1."""

SPATIAL = ("mu_s", "sigma_s")
"""Names of ADM's statistics of spatial features, for sFID."""

DAMAGED = (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
FIX = "name a file that jaxdiff.evaluate --reference, ADM, EDM or pytorch-fid has written"


class Reference(NamedTuple):
    """Statistics of a reference.

    Attributes:
      gaussian: mean, covariance and number of images; 0 where the file does not state it.
      made: how they were made: ``features``, ``profile``, ``features_hash``, ``data``, ``version``; empty for a file of
        another library.
      path: the file.
      hash: ``sha256:`` and 16 digits, of the statistics themselves: the same for any name or compression of the file.
    """

    gaussian: Gaussian
    made: Mapping[str, Any]
    path: str
    hash: str

    def of(self, features: FeatureExtractor) -> "Reference":
        """These statistics, if they were made with the same features.

        Raises:
          UserError: another feature space, profile or hash of weights; names the field.
        """
        for name, value in describe(features).items() if self.made else ():
            made = self.made.get(name)
            fix = f"make a reference with these features, or evaluate with {made!r}"
            same = str(made) == str(value)
            expect(same, "reference", self.path, f"statistics whose {name} is {value!r}", fix, repr(made))
        return self


def save(path: epath.PathLike, gaussian: Gaussian, made: Mapping[str, Any]) -> None:
    """Write reference statistics.

    Args:
      path: of the new file; pytorch-fid and EDM can read it.
      made: how they were made, as JSON values.
    """
    arrays = {"mu": gaussian.mean, "sigma": gaussian.covariance, "n": gaussian.n}
    with epath.Path(path).open("wb") as file:
        np.savez(file, **arrays, made=json.dumps(dict(made)))


def load(path: epath.PathLike, spatial: bool = False) -> Reference:
    """Read reference statistics.

    Args:
      path: an ``.npz`` of `save`, ADM, EDM or pytorch-fid.
      spatial: prefer the spatial statistics of ADM's files, for sFID.

    Raises:
      UserError: the file does not exist, is damaged, or lacks an array; or its arrays are no mean and covariance.
    """
    file = epath.Path(path).expanduser()
    expect(file.exists(), "reference", str(path), "'train', 'test' or an .npz file", "name one", "no file")
    try:
        arrays = _arrays(file)
        made, n = json.loads(str(arrays.get("made", "{}"))), int(arrays.get("n", 0))
        numbers = {name: _real(array) for name, array in arrays.items() if name not in ("made", "n")}
    except DAMAGED as error:
        raise UserError(
            f"reference={str(path)!r}: expected an intact .npz file, got {type(error).__name__}. Fix: {FIX}"
        ) from None
    expect(
        isinstance(made, dict) and n >= 0,
        "reference",
        str(path),
        "n >= 0, and how it was made",
        FIX,
        "others",
    )
    names = next(
        (pair for pair in ((SPATIAL,) if spatial else ()) + SPELLINGS if set(pair) <= set(arrays)), None
    )
    expect(
        names is not None, "reference", str(path), "the arrays mu and sigma", FIX, f"only {sorted(arrays)}"
    )
    mean, covariance = (numbers[name] for name in names or ())
    _check(str(path), mean, covariance)
    gaussian = Gaussian(mean, covariance, n)
    return Reference(gaussian, made, str(path), fingerprint(gaussian))


def fingerprint(gaussian: Gaussian) -> str:
    """SHA-256 of mean and covariance, as ``sha256:`` and 16 digits."""
    digest = hashlib.sha256(gaussian.mean.tobytes())
    digest.update(np.ascontiguousarray(gaussian.covariance).tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def _arrays(file: epath.Path) -> dict[str, np.ndarray]:
    wanted = {*SPATIAL, *(name for pair in SPELLINGS for name in pair), "n", "made"}
    with file.open("rb") as opened, np.load(opened) as arrays:  # reads no pickles
        return {name: arrays[name] for name in arrays.files if name in wanted}


def _real(array: np.ndarray) -> np.ndarray:
    """An array in float64.

    Raises:
      TypeError: its values are no real numbers.
    """
    if array.dtype.kind not in "fiu":
        raise TypeError(f"expected real numbers, got {array.dtype}")
    return np.asarray(array, np.float64)


def _check(path: str, mean: np.ndarray, covariance: np.ndarray) -> None:
    square = mean.ndim == 1 and covariance.shape == (len(mean), len(mean))
    got = f"{mean.shape} and {covariance.shape}"
    expect(square, "reference", path, "a mean [d] and a covariance [d, d]", FIX, got)
    finite = bool(np.isfinite(mean).all() and np.isfinite(covariance).all())
    expect(finite, "reference", path, "finite statistics", FIX, "values that are not finite")
    scale = np.abs(covariance).max(initial=0)
    symmetric = bool(np.allclose(covariance, covariance.T, rtol=0, atol=1e-6 * scale))
    expect(symmetric, "reference", path, "a symmetric covariance", FIX, "one that is not")
    variances = covariance.diagonal()
    bound = np.sqrt(np.outer(variances.clip(0), variances.clip(0))) + 1e-6 * scale
    possible = bool(np.all(np.abs(covariance) <= bound))  # of every positive semidefinite matrix
    expect(possible, "reference", path, "variances of at least 0, and correlations in [-1, 1]", FIX, "others")
