"""The power spectrum of images: whether they are as sharp, and as rough, as real ones."""

import numpy as np
from jaxtyping import Float64, Shaped, UInt8

from jaxdiff.errors import require

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
ROUNDING = 1 / 12
"""Power of rounding to bytes, in squared levels; less than this is not told from none."""
FIRST = 2  # radii 0 and 1 hold the mean of the image, which the window spreads
CHUNK = 64


def luma(images: Shaped[np.ndarray, "*n channels"]) -> Float64[np.ndarray, "*n"]:
    """The luma of RGB (ITU-R BT.601), on the same scale; one channel as it is."""
    channels = images.shape[-1]
    require(channels in (1, 3), "images", images.shape, "they are neither grey nor RGB", "pick channels")
    return images @ np.asarray(LUMA) if channels == 3 else images[..., 0].astype(np.float64)


def radial_power(images: UInt8[np.ndarray, "n height width channels"]) -> Float64[np.ndarray, "radii"]:
    """Power of the luma by spatial frequency, in squared levels of 0..255, mean over images.

    ``|FFT(window * luma)|^2 / sum(window^2)``, averaged over rings. So white noise has its variance at every radius.
    The window is Hann's, the periodic one, whose own spectrum ends at one cycle a side: a constant image has no power
    at all from radius 2 on.

    Returns:
      entry i is about the ring at radius i + 2: frequencies that round to i + 2 cycles in the shorter side of the
      image, the last at half a cycle a pixel (rounded down).
    """
    height, width = images.shape[1:3]
    side = min(height, width)
    require(side >= 2 * FIRST, "images", images.shape, "there is no frequency to look at", "take larger ones")
    window = np.outer(_hann(height), _hann(width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    # Sums that equal a half but for rounding fall to one side.
    radius = np.floor(frequency * side + 0.5 + 1e-9).astype(int)
    power = np.zeros((height, width))
    for first in range(0, len(images), CHUNK):
        spectrum = np.fft.fft2(window * luma(images[first : first + CHUNK]))
        power += (np.abs(spectrum) ** 2).sum(axis=0)
    rings = np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel())
    return rings[FIRST : side // 2 + 1] / (len(images) * (window**2).sum())


def spectrum_distance(a: Float64[np.ndarray, "radii"], b: Float64[np.ndarray, "radii"]) -> float:
    """Mean over radii of ``|log10(a / b)|`` of two `radial_power`: 0.1 is a decibel, which is a factor of 1.26."""
    logs = (np.log10(np.maximum(power, ROUNDING)) for power in (a, b))
    return float(np.abs(np.subtract(*logs)).mean())


def _hann(n: int) -> Float64[np.ndarray, "n"]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
