"""What can be made of a condition without learning: a model has to be better than this."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64, Shaped, UInt8

from jaxdiff.data import images
from jaxdiff.errors import require
from jaxdiff.evaluation.metrics.spectrum import luma


def levels(values: Shaped[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """A condition on the scale of bytes, 0..255: bytes as they are, floats from -1..1."""
    floats = np.issubdtype(values.dtype, np.floating)
    require(floats or values.dtype == np.uint8, "values", values.dtype, "these are neither bytes nor floats",
            "give uint8, or floats between -1 and 1")  # fmt: skip
    return (values.astype(np.float64) + 1) * 127.5 if floats else values.astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Enlarged:
    """Small images, resized: the baseline of super-resolution.

    Attributes:
      factor: how many times larger each side becomes.
      method: "bicubic" is the usual baseline; "nearest" makes squares.
    """

    factor: int
    method: images.Resampling = "bicubic"

    def __post_init__(self):
        require(self.factor > 1, "factor", self.factor, "nothing would be enlarged", "give at least 2")

    @property
    def name(self) -> str:
        return self.method

    def __call__(
        self, small: Shaped[np.ndarray, "n small_height small_width channels"]
    ) -> UInt8[np.ndarray, "n height width channels"]:
        """Bytes, or floats between -1 and 1, which are rounded to bytes first."""
        height, width = (side * self.factor for side in small.shape[1:3])
        pixels = _rounded(levels(small))
        return np.stack([images.resize(image, (height, width), self.method) for image in pixels])


@dataclasses.dataclass(frozen=True)
class MeanColour:
    """What is known, and one colour for all the rest: the baseline of inpainting and the like.

    Attributes:
      colour: in levels of 0..255, as many as the images have channels.
      keep_luma: where the image to begin with is grey, the luma of unknown pixels is taken from it, and only their
        chroma (Cb and Cr of ITU-R BT.601) from the colour. That is harder to beat.
    """

    colour: tuple[float, ...]
    keep_luma: bool = False

    @property
    def name(self) -> str:
        return "mean colour"

    @classmethod
    def of(cls, train: UInt8[np.ndarray, "n height width channels"], keep_luma: bool = False) -> "MeanColour":
        """With the mean colour of these images."""
        return cls(tuple(train.mean(axis=(0, 1, 2), dtype=np.float64).tolist()), keep_luma)

    def __call__(
        self, source: Shaped[np.ndarray, "n height width channels_and_alpha"]
    ) -> UInt8[np.ndarray, "n height width channels"]:
        """Of an image and a channel that is 1 (a byte: 255) where it is known, and less elsewhere."""
        given = levels(source)
        pixels, colour = given[..., :-1], np.asarray([self.colour])
        fits = pixels.shape[-1] == len(self.colour)
        require(
            fits, "colour", self.colour, f"images have {pixels.shape[-1]} channels", "give a level for each"
        )
        made = np.broadcast_to(colour, pixels.shape)
        if self.keep_luma:
            made = luma(pixels)[..., None] + (colour - luma(colour))
        return _rounded(np.where(known(source)[..., None], pixels, made))


def known(
    source: Shaped[np.ndarray, "n height width channels_and_alpha"],
) -> Shaped[np.ndarray, "n height width"]:
    """Where the last channel says that a pixel is known: it is 1, or the byte 255."""
    return levels(source[..., -1]) >= 255


def _rounded(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
