"""Patches as a feature space: whether the details of images are distributed like those of real ones.

A network's features need a network, and thousands of images; patches need neither, since one image has hundreds of
them. Single-image models are judged in a like manner, by features of a network at every place (Shaham et al. 2019,
"SinGAN", section 3). Patches know nothing of what an image shows as a whole.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from jaxdiff.errors import require
from jaxdiff.evaluation.metrics import frechet

ROWS = 8192  # patches that are in memory at once


@dataclasses.dataclass(frozen=True)
class Patches:
    """All square patches of an image, each a row of its pixels between 0 and 1.

    Attributes:
      size: side of a patch, in pixels. A distance sees structure up to this size.
      stride: pixels from one patch to the next. Rows and columns at the lower and right border in which no whole patch
        fits any more are not seen.
    """

    size: int = 8
    stride: int = 4

    def __post_init__(self):
        require(self.size > 0, "size", self.size, "a patch has pixels", "try 8")
        fits = 0 < self.stride <= self.size
        require(fits, "stride", self.stride, f"patches of {self.size} would miss pixels", "take half of size")

    @property
    def name(self) -> str:
        return f"{self.size} x {self.size} patches at every {self.stride} pixels in [0, 1]"

    def __call__(
        self,
        images: UInt8[np.ndarray, "n height width channels"],
        touching: Bool[np.ndarray, "n height width"] | None = None,
    ) -> Float64[np.ndarray, "patches d"]:
        """All patches, image by image, each from left to right and then down.

        Args:
          touching: keep only patches in which this is true at one pixel or more.

        Raises:
          UserError: no patch fits into an image.
        """
        fits = self.size <= min(images.shape[1:3])
        require(fits, "size", self.size, f"images have {images.shape[1]} x {images.shape[2]} pixels",
                "take smaller patches")  # fmt: skip
        windows = self._windows(images).transpose(0, 1, 2, 4, 5, 3)
        rows = windows.reshape(-1, self.size**2 * images.shape[3])
        if touching is not None:
            rows = rows[self._windows(touching).any(axis=(3, 4)).reshape(-1)]
        return rows / 255.0

    def fit(
        self,
        images: UInt8[np.ndarray, "n height width channels"],
        touching: Bool[np.ndarray, "n height width"] | None = None,
    ) -> frechet.Gaussian:
        """Mean and covariance of all patches of all images, of which few are in memory at once.

        Raises:
          UserError: see `__call__`; or no patch is touched.
        """
        require(touching is None or bool(touching.any()), "touching", touching, "no pixel is touched",
                "give pixels to look at")  # fmt: skip
        return frechet.fit_stream(self._batches(images, touching))

    def distance(
        self,
        a: UInt8[np.ndarray, "n height width channels"],
        b: UInt8[np.ndarray, "m height width channels"],
    ) -> float:
        """Fréchet distance between the patches of two sets of images."""
        return frechet.frechet_distance(self.fit(a), self.fit(b))

    def _batches(self, images: np.ndarray, touching: np.ndarray | None) -> Iterator[np.ndarray]:
        down, across = ((side - self.size) // self.stride + 1 for side in images.shape[1:3])
        count = max(1, ROWS // max(1, down * across))
        for first in range(0, len(images), count):
            part = slice(first, first + count)
            rows = self(images[part], None if touching is None else touching[part])
            if len(rows):
                yield rows

    def _windows(self, values: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(values, (self.size, self.size), (1, 2))
        return windows[:, :: self.stride, :: self.stride]
