"""Comparisons of images with the very images that they should agree with, in levels of 0..255."""

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from jaxdiff.errors import require
from jaxdiff.evaluation.baselines import levels

Images = UInt8[np.ndarray, "n height width channels"]
Where = Bool[np.ndarray, "n height width"]


def rms(images: Images, truth: Images, where: Where | None = None) -> float:
    """Root of the mean squared difference, over all channels of all pixels or of those `where` it is true."""
    chosen = slice(None) if where is None else where
    difference = images[chosen].astype(np.float64) - truth[chosen]
    return float(np.sqrt((difference**2).mean()))


def psnr(images: Images, truth: Images) -> float | None:
    """``20 log10(255 / rms)`` in dB, of all images together; None where they are equal.

    It says little about quality: of all that agrees with a condition, the mean scores best, and that is blurred
    (Saharia et al. 2021, "SR3", section 4.2; Blau & Michaeli 2018, "The Perception-Distortion Tradeoff").
    """
    error = rms(images, truth)
    return float(20 * np.log10(255 / error)) if error > 0 else None


def mean_colour_error(images: Images, truth: Images) -> float:
    """Mean over images and channels of ``|mean of the image - mean of the truth|``: a shift of colours."""
    shift = images.mean(axis=(1, 2), dtype=np.float64) - truth.mean(axis=(1, 2), dtype=np.float64)
    return float(np.abs(shift).mean())


def inconsistency(
    images: Images, low_res: Shaped[np.ndarray, "n small_height small_width channels"], factor: int
) -> float:
    """RMS between means over squares of `factor` pixels and the small images that were given.

    Not rounded, so that the truth itself has some 0.3 levels where the small images were rounded to bytes, and more
    where they were made in another way than by means.

    Args:
      low_res: bytes, or floats between -1 and 1.

    Raises:
      UserError: `factor` times `low_res` is not the size of the images.
    """
    n, height, width, channels = low_res.shape
    fits = images.shape == (n, height * factor, width * factor, channels)
    require(fits, "factor", factor, f"images are {images.shape}, and small ones {low_res.shape}",
            "give the factor between the two")  # fmt: skip
    means = images.reshape(n, height, factor, width, factor, channels).mean(axis=(2, 4), dtype=np.float64)
    return float(np.sqrt(((means - levels(low_res)) ** 2).mean()))


def share_kept(images: Images, truth: Images, known: Where) -> float | None:
    """Share of the known pixels all of whose channels are the truth's, byte by byte; None where none is known."""
    same = (images == truth).all(axis=-1)
    return float(same[known].mean()) if known.any() else None


def diversity(
    samples: UInt8[np.ndarray, "k n height width channels"], where: Where | None = None
) -> float | None:
    """Standard deviation between the k samples of one input (of k - 1), mean over pixels; None for one sample."""
    if len(samples) < 2:
        return None
    spread = samples.std(axis=0, ddof=1, dtype=np.float64)
    return float((spread if where is None else spread[where]).mean())
