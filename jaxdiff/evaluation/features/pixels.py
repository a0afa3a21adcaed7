"""Feature spaces in which images are compared. A distance says nothing without the name of its space."""

import dataclasses

import numpy as np
from jaxtyping import Float64, UInt8


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The pixels themselves. Right for small aligned images; photographs need the features of a network."""

    @property
    def name(self) -> str:
        return "pixels in [0, 1]"

    def __call__(self, images: UInt8[np.ndarray, "n height width channels"]) -> Float64[np.ndarray, "n d"]:
        """One row of numbers between 0 and 1 for each image."""
        return images.reshape(len(images), -1) / 255.0
