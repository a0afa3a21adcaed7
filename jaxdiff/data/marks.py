"""Marks: a sketch of positions alone, computed from an image as the degradations of `data/degradations.py` are."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from jaxdiff.data.degradations import LEVELS, TRUNCATE, ImageArray, luma
from jaxdiff.errors import between, positive

LEAST = 0.1
"""Least density of a mark: the weight under the Gaussian that bright pixels have there."""


@dataclasses.dataclass(frozen=True)
class Marks:
    """White discs on black, one at the centre of each bright thing: where things are, not their shapes or colours.

    Pixels count as bright or not. Their density, by a Gaussian, has its maxima at the discs.

    Attributes:
      level: least luma of a bright pixel, 0 to 1.
      sigma: standard deviation of the Gaussian, in pixels; a quarter of the size of things joins the parts of each.
      radius: of the discs, in pixels; the highest density within this distance has one.
    """

    level: float = 0.05
    sigma: float = 2.0
    radius: int = 2

    def __post_init__(self):
        between(self, "level", 0.0, 1.0, open_low=True)
        positive(self, "sigma", "radius")

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> UInt8[np.ndarray, "height width one"]:
        rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
        marked = np.zeros(image.shape[:2], bool)
        for y, x in self._centres(luma(image) >= self.level * LEVELS):
            marked |= (rows - y) ** 2 + (columns - x) ** 2 <= self.radius**2
        return marked[..., None] * np.uint8(LEVELS)

    def _centres(self, bright: Bool[np.ndarray, "height width"]) -> Float64[np.ndarray, "marks two"]:
        """The maxima of the density of bright pixels. Connected maxima count as one, at their middle."""
        from scipy import ndimage

        density = ndimage.gaussian_filter(
            bright.astype(float), self.sigma, mode="constant", truncate=TRUNCATE
        )
        highest = density == ndimage.maximum_filter(density, 2 * self.radius + 1)
        maxima = highest & (density >= LEAST)
        labelled: Any = ndimage.label(maxima, np.ones((3, 3)))
        parts, count = labelled
        return np.array(ndimage.center_of_mass(maxima, parts, range(1, count + 1))).reshape(-1, 2)
