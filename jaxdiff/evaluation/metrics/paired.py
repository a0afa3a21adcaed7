"""Comparisons of images with the real images of the same conditions, in levels of 0..255."""

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from jaxdiff.errors import expect
from jaxdiff.evaluation.baselines import levels
from jaxdiff.evaluation.metrics.running import Mean

Images = UInt8[np.ndarray, "n height width channels"]
Pixels = Bool[np.ndarray, "n height width"]


def squared_error(images: Images, truth: Images, where: Pixels | None = None) -> Mean:
    """Mean squared difference over all channels of all pixels, or of the pixels where `where` is true."""
    chosen = slice(None) if where is None else where
    squares = (images[chosen].astype(np.float64) - truth[chosen]) ** 2
    return Mean(float(squares.sum()), squares.size)


def rms(images: Images, truth: Images, where: Pixels | None = None) -> float | None:
    """Root of `squared_error`; None of no pixels."""
    return squared_error(images, truth, where).root


def psnr(error: Mean) -> float | None:
    """PSNR of images with this squared error, ``20 log10(255 / rms)`` in dB; None where they are equal.

    It says little about quality. Among the images that agree with a condition their mean scores best, and the mean is
    blurred (Saharia et al. 2021, "SR3", section 4.2; Blau & Michaeli 2018, "The Perception-Distortion Tradeoff").
    """
    return float(20 * np.log10(255 / error.root)) if error.root else None


def mean_colour_error(images: Images, truth: Images) -> Mean:
    """Shift of colour: mean over images and channels of ``|mean of the image - mean of the truth|``."""
    shift = images.mean(axis=(1, 2), dtype=np.float64) - truth.mean(axis=(1, 2), dtype=np.float64)
    return Mean(float(np.abs(shift).sum()), shift.size)


def inconsistency(
    images: Images, low_res: Shaped[np.ndarray, "n small_height small_width channels"], factor: int
) -> Mean:
    """Squared difference between the means over squares of `factor` pixels and the given small images.

    The means are not rounded. So the truth itself has an RMS of about 0.3 levels where the small images were rounded
    to bytes, and more where they were not computed as means.

    Args:
      low_res: uint8, or floats in [-1, 1].

    Raises:
      UserError: `factor` times `low_res` is not the size of the images.
    """
    n, height, width, channels = low_res.shape
    fits = images.shape == (n, height * factor, width * factor, channels)
    expected = f"the factor between small images {low_res.shape} and images {images.shape}"
    expect(fits, "factor", factor, expected, "give this factor")
    means = images.reshape(n, height, factor, width, factor, channels).mean(axis=(2, 4), dtype=np.float64)
    squares = (means - levels(low_res)) ** 2
    return Mean(float(squares.sum()), squares.size)


def fraction_kept(images: Images, truth: Images, known: Pixels) -> Mean:
    """Fraction of the known pixels whose channels all equal the truth's exactly."""
    same = (images == truth).all(axis=-1)[known]
    return Mean(float(same.sum()), same.size)


def diversity(samples: UInt8[np.ndarray, "k n height width channels"], where: Pixels | None = None) -> Mean:
    """Standard deviation (ddof=1) between the k samples of one input, mean over pixels; no mean of one sample."""
    if len(samples) < 2:
        return Mean()
    spread = samples.std(axis=0, ddof=1, dtype=np.float64)
    spread = spread if where is None else spread[where]
    return Mean(float(spread.sum()), spread.size)
