"""Principal components of pixels: a feature space of the data set at hand, which needs no published weights.

Figures in it compare models of one data set. They are no FID, and compare with no published figure.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, UInt8

from jaxdiff.errors import expect
from jaxdiff.evaluation.features.weights import check_sha256, checked_hash
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.tensors import Tensors, read_tensors

MEAN, COMPONENTS = "mean", "components"
"""The arrays of a file: [height, width, channels], and [dim, height, width, channels]."""


@dataclasses.dataclass(frozen=True)
class PixelPca:
    """Coordinates of images along the principal components of a data set's pixels in [0, 1].

    Attributes:
      weights: a file of `fit_pixel_pca`.
      sha256: the SHA-256 that the file must have, or its first digits.
    """

    places: ClassVar[tuple[str, ...]] = ("weights",)
    profile: ClassVar[str] = "as stored"

    weights: str
    sha256: str | None = None

    def __post_init__(self):
        check_sha256(self.sha256)

    @property
    def name(self) -> str:
        return "principal components of pixels"

    @property
    def dim(self) -> int:
        """The number of components."""
        return len(_load(self.weights, self.sha256)[1][COMPONENTS])

    @property
    def hash(self) -> str:
        """SHA-256 of the file."""
        return _load(self.weights, self.sha256)[0]

    def __call__(self, images: UInt8[np.ndarray, "n height width channels"]) -> Float32[np.ndarray, "n dim"]:
        """The coordinates of each image.

        Raises:
          UserError: the file cannot be read or is another one, or the images have another size than those of the fit.
        """
        arrays = _load(self.weights, self.sha256)[1]
        shape = arrays[MEAN].shape
        fix = "fit the components to images of this size"
        expect(images.shape[1:] == shape, "images", images.shape[1:], f"images of {shape}", fix)
        centred = images / np.float32(255) - arrays[MEAN]
        return centred.reshape(len(images), -1) @ arrays[COMPONENTS].reshape(-1, centred[0].size).T


def fit_pixel_pca(images: UInt8[np.ndarray, "n height width channels"], dim: int, path: str) -> PixelPca:
    """Fit the components of largest variance to real images, and write them to a safetensors file.

    Args:
      images: of a training set, two or more.
      dim: number of components, at most the number of images and of pixels.
      path: of the new file.

    Raises:
      UserError: `dim` is too large.
    """
    from sklearn.decomposition import PCA

    n, *shape = images.shape
    most = min(n, int(np.prod(shape)))
    expect(0 < dim <= most, "dim", dim, f"1 to {most}, the number of images or of pixels", "use fewer")
    solver: Any = "auto"
    fitted: Any = PCA(dim, svd_solver=solver, random_state=0).fit(images.reshape(n, -1) / 255.0)
    arrays = {MEAN: fitted.mean_.reshape(shape), COMPONENTS: fitted.components_.reshape(dim, *shape)}
    write_safetensors(path, {name: array.astype(np.float32) for name, array in arrays.items()})
    return PixelPca(path)


@functools.lru_cache(maxsize=2)
def _load(weights: str, sha256: str | None) -> tuple[str, dict[str, np.ndarray]]:
    found = checked_hash(weights, sha256)
    tensors = read_tensors(weights).tensors
    _check(tensors, weights)
    return found, {name: np.array(tensors[name]) for name in (MEAN, COMPONENTS)}


def _check(tensors: Tensors, weights: str) -> None:
    fits = {MEAN, COMPONENTS} == set(tensors) and tensors[COMPONENTS].shape[1:] == tensors[MEAN].shape
    got = ", ".join(sorted(tensors)[:4]) or "none"
    expect(
        fits, "weights", weights, f"the arrays {MEAN} and {COMPONENTS}", "give a file of fit_pixel_pca", got
    )
