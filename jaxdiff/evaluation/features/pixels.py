"""Pixels as a feature space. A distance means nothing without the name of its feature space."""

import dataclasses

import numpy as np
from jaxtyping import Float64, UInt8


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Pixel features: the image itself. Suits small aligned images; photographs need the features of a network."""

    @property
    def name(self) -> str:
        return "pixels in [0, 1]"

    def __call__(self, images: UInt8[np.ndarray, "n height width channels"]) -> Float64[np.ndarray, "n d"]:
        """One row per image, with entries in [0, 1]."""
        return images.reshape(len(images), -1) / 255.0
