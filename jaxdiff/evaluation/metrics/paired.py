"""Comparisons of images with the real images of the same conditions, in levels of 0..255."""

import numpy as np
from jaxtyping import Bool, Float64, Shaped, UInt8
from scipy import ndimage

from jaxdiff.errors import expect
from jaxdiff.evaluation.baselines import levels
from jaxdiff.evaluation.metrics.running import Mean

WINDOW, RADIUS = 1.5, 5
"""Standard deviation and radius of the windows of SSIM, in pixels."""

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


def ssim(images: Images, truth: Images) -> Mean:
    """SSIM of each image (Wang et al. 2004): the mean over channels and over all windows that lie inside the image.

    Windows are Gaussian, of 11 x 11 pixels with standard deviation 1.5, and the constants are those of the paper. All
    channels are compared as they are stored.

    Raises:
      UserError: an image is smaller than a window.
    """
    sides, fix = images.shape[1:3], "use metrics.restoration:Psnr for such images"
    expect(min(sides) > 2 * RADIUS, "images", sides, f"sides of at least {2 * RADIUS + 1} for SSIM", fix)
    a, b = images.astype(np.float64), truth.astype(np.float64)
    mean_a, mean_b = _windowed(a), _windowed(b)
    variances = _windowed(a * a) + _windowed(b * b) - mean_a**2 - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    small = [(0.01 * 255) ** 2, (0.03 * 255) ** 2]
    means = (2 * mean_a * mean_b + small[0]) / (mean_a**2 + mean_b**2 + small[0])
    found = means * (2 * covariance + small[1]) / (variances + small[1])
    return Mean(float(found.mean(axis=(1, 2, 3)).sum()), len(images))


def _windowed(
    values: Float64[np.ndarray, "n height width channels"],
) -> Float64[np.ndarray, "n h w channels"]:
    """Means over Gaussian windows, at the pixels whose window lies inside the image."""
    sigmas = (0, WINDOW, WINDOW, 0)
    found = ndimage.gaussian_filter(values, sigmas, radius=(0, RADIUS, RADIUS, 0))
    return found[:, RADIUS:-RADIUS, RADIUS:-RADIUS]


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
