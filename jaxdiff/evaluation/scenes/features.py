"""Features of scenes: downsampled pixels."""

import dataclasses

import numpy as np
from jaxtyping import Float64, UInt8


@dataclasses.dataclass(frozen=True)
class HalfSize:
    """Means of 2x2 pixels in [0, 1]: a shift by one pixel is a small distance."""

    @property
    def name(self) -> str:
        return "means of 2x2 pixels in [0, 1]"

    def __call__(self, images: UInt8[np.ndarray, "n height width channels"]) -> Float64[np.ndarray, "n d"]:
        n, height, width, channels = images.shape
        blocks = images.reshape(n, height // 2, 2, width // 2, 2, channels) / 255.0
        return blocks.mean(axis=(2, 4)).reshape(n, -1)
