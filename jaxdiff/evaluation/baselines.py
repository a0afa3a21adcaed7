"""Baselines without learning: images computed from a condition, which a model has to beat."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Float64, Shaped, UInt8

from jaxdiff.data import images
from jaxdiff.errors import expect
from jaxdiff.evaluation.metrics.spectrum import luma


def levels(values: Shaped[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """A condition on the scale of bytes, 0..255: uint8 unchanged, floats from [-1, 1].

    Raises:
      UserError: values of another type.
    """
    floats = np.issubdtype(values.dtype, np.floating)
    known, fix = floats or values.dtype == np.uint8, "give uint8, or floats in [-1, 1]"
    expect(known, "values", values.dtype, "uint8 or floats", fix)
    return (values.astype(np.float64) + 1) * 127.5 if floats else values.astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Enlarged:
    """Enlarged small images: the baseline of super-resolution.

    Attributes:
      factor: ratio of the sides, at least 2.
      method: resampling method; "bicubic" is the usual baseline.
    """

    factor: int
    method: images.Resampling = "bicubic"

    def __post_init__(self):
        expect(self.factor > 1, "factor", self.factor, "at least 2", "give 2 or more")

    @property
    def name(self) -> str:
        return self.method

    def __call__(
        self, small: Shaped[np.ndarray, "n small_height small_width channels"]
    ) -> UInt8[np.ndarray, "n height width channels"]:
        """Enlarge uint8 images, or floats in [-1, 1], which are rounded to bytes first."""
        height, width = (side * self.factor for side in small.shape[1:3])
        pixels = _rounded(levels(small))
        return np.stack([images.resize(image, (height, width), self.method) for image in pixels])


@dataclasses.dataclass(frozen=True)
class MeanColour:
    """The known pixels, and one colour elsewhere: the baseline of inpainting and colourization.

    Attributes:
      colour: levels of 0..255, one per channel.
      keep_luma: take the luma of unknown pixels from the given (grey) image, and only their chroma (Cb and Cr of ITU-R
        BT.601) from the colour. This baseline is harder to beat.
    """

    colour: tuple[float, ...]
    keep_luma: bool = False

    @property
    def name(self) -> str:
        return "mean colour"

    @classmethod
    def of(
        cls, images: Iterable[UInt8[np.ndarray, "_ height width channels"]], keep_luma: bool = False
    ) -> "MeanColour":
        """The mean colour of a stream of batches of images."""
        total, pixels = np.zeros(()), 0
        for batch in images:
            total = total + batch.sum(axis=(0, 1, 2), dtype=np.float64)
            pixels += batch[..., 0].size
        return cls(tuple((total / pixels).tolist()), keep_luma)

    def __call__(
        self, source: Shaped[np.ndarray, "n height width channels_and_alpha"]
    ) -> UInt8[np.ndarray, "n height width channels"]:
        """Fill in images whose last channel is 1 (uint8: 255) where a pixel is known, and less elsewhere.

        Raises:
          UserError: the images have another number of channels than `colour`.
        """
        given = levels(source)
        pixels, colour = given[..., :-1], np.asarray([self.colour])
        expected, fix = f"{pixels.shape[-1]} levels, one per channel of the images", "give one for each"
        expect(pixels.shape[-1] == len(self.colour), "colour", self.colour, expected, fix)
        filled = np.broadcast_to(colour, pixels.shape)
        if self.keep_luma:
            filled = luma(pixels)[..., None] + (colour - luma(colour))
        return _rounded(np.where(known(source)[..., None], pixels, filled))


def known(
    source: Shaped[np.ndarray, "n height width channels_and_alpha"],
) -> Shaped[np.ndarray, "n height width"]:
    """Known pixels: those where the last channel is 1 (uint8: 255)."""
    return levels(source[..., -1]) >= 255


def _rounded(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
