"""Patches as a feature space: whether the details of images are distributed like those of real images.

The features of a network need a network and thousands of images. Patches need neither, since one image has hundreds of
them. Single-image models are evaluated similarly, with features of a network at every position (Shaham et al. 2019,
"SinGAN", section 3). Patches are blind to the composition of an image.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from jaxdiff.errors import expect, positive
from jaxdiff.evaluation.metrics import moments
from jaxdiff.evaluation.metrics.frechet import frechet_distance

ROWS = 8192
"""Number of patches in memory at once."""


@dataclasses.dataclass(frozen=True)
class Patches:
    """All square patches of an image, each a row of its pixels in [0, 1].

    Attributes:
      size: side of a patch, in pixels. Distances depend on structure up to this size.
      stride: pixels from one patch to the next. Pixels at the lower and right border belong to no patch where the
        stride does not reach them.
    """

    size: int = 8
    stride: int = 4

    def __post_init__(self):
        positive(self, "size")
        expected = f"1 to {self.size}, so that patches cover all pixels"
        expect(0 < self.stride <= self.size, "stride", self.stride, expected, "use half of size")

    @property
    def name(self) -> str:
        return f"{self.size} x {self.size} patches at every {self.stride} pixels in [0, 1]"

    def __call__(
        self,
        images: UInt8[np.ndarray, "n height width channels"],
        touching: Bool[np.ndarray, "n height width"] | None = None,
    ) -> Float64[np.ndarray, "patches d"]:
        """All patches in the order image, row, column.

        Args:
          touching: keep only patches that contain a pixel where this is true.

        Raises:
          UserError: images are smaller than a patch.
        """
        expected = f"at most the sides of the images, {images.shape[1]} x {images.shape[2]}"
        expect(self.size <= min(images.shape[1:3]), "size", self.size, expected, "use smaller patches")
        windows = self._windows(images).transpose(0, 1, 2, 4, 5, 3)
        rows = windows.reshape(-1, self.size**2 * images.shape[3])
        if touching is not None:
            rows = rows[self._windows(touching).any(axis=(3, 4)).reshape(-1)]
        return rows / 255.0

    def fit(
        self,
        images: UInt8[np.ndarray, "n height width channels"],
        touching: Bool[np.ndarray, "n height width"] | None = None,
        chunk: int = ROWS,
    ) -> moments.Gaussian:
        """Mean and covariance of all patches of all images, with few patches in memory at once.

        Args:
          touching: see `__call__`.
          chunk: number of patches in memory at once; at least those of one image.

        Raises:
          UserError: see `__call__`; or `touching` is true nowhere.
        """
        some = touching is None or bool(touching.any())
        expect(some, "touching", "mask", "a pixel that is true", "select pixels", "none")
        return moments.fit_stream(self._batches(images, touching, chunk))

    def distance(
        self,
        a: UInt8[np.ndarray, "n height width channels"],
        b: UInt8[np.ndarray, "m height width channels"],
    ) -> float:
        """Fréchet distance between the patches of two sets of images."""
        return frechet_distance(self.fit(a), self.fit(b))

    def _batches(self, images: np.ndarray, touching: np.ndarray | None, chunk: int) -> Iterator[np.ndarray]:
        down, across = ((side - self.size) // self.stride + 1 for side in images.shape[1:3])
        count = max(1, chunk // max(1, down * across))
        for first in range(0, len(images), count):
            part = slice(first, first + count)
            rows = self(images[part], None if touching is None else touching[part])
            if len(rows):
                yield rows

    def _windows(self, values: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(values, (self.size, self.size), (1, 2))
        return windows[:, :: self.stride, :: self.stride]
