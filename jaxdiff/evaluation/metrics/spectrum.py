"""Power spectrum of images: whether samples are as sharp and as noisy as real images."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Shaped, UInt8

from jaxdiff.errors import expect
from jaxdiff.evaluation.formats import significant
from jaxdiff.evaluation.metric import Batch, Metric, Row

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
ROUNDING = 1 / 12
"""Power of rounding to bytes, in squared levels. Smaller powers count as this one."""
FIRST = 2  # the window spreads the mean of the image over radii 0 and 1
CHUNK = 64


def luma(images: Shaped[np.ndarray, "*n channels"]) -> Float64[np.ndarray, "*n"]:
    """Luma of RGB images (ITU-R BT.601), on the same scale; grey images unchanged."""
    channels = images.shape[-1]
    expect(
        channels in (1, 3), "images", images.shape, "grey or RGB images, 1 or 3 channels", "select channels"
    )
    return images @ np.asarray(LUMA) if channels == 3 else images[..., 0].astype(np.float64)


def radial_power(images: UInt8[np.ndarray, "n height width channels"]) -> Float64[np.ndarray, "radii"]:
    """Power of the luma by spatial frequency, in squared levels of 0..255, mean over images.

    ``|FFT(window * luma)|^2 / sum(window^2)``, averaged over rings. So white noise has its variance at every radius.
    The window is the periodic Hann window, whose spectrum ends at one cycle per side: a constant image has no power
    from radius 2 on.

    Returns:
      entry i belongs to the ring of radius i + 2: frequencies that round to i + 2 cycles per shorter side of the image.
      The last one is half a cycle per pixel (rounded down).

    Raises:
      UserError: images smaller than 4 pixels.
    """
    height, width = images.shape[1:3]
    side = min(height, width)
    expect(side >= 2 * FIRST, "images", images.shape, f"sides >= {2 * FIRST} pixels", "use larger images")
    window = np.outer(_hann(height), _hann(width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    # Rounding must not move frequencies of exactly half a cycle to different rings.
    radius = np.floor(frequency * side + 0.5 + 1e-9).astype(int)
    power = np.zeros((height, width))
    for first in range(0, len(images), CHUNK):
        spectrum = np.fft.fft2(window * luma(images[first : first + CHUNK]))
        power += (np.abs(spectrum) ** 2).sum(axis=0)
    rings = np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel())
    return rings[FIRST : side // 2 + 1] / (len(images) * (window**2).sum())


def spectrum_distance(a: Float64[np.ndarray, "radii"], b: Float64[np.ndarray, "radii"]) -> float:
    """Mean over radii of ``|log10(a / b)|`` of two `radial_power`: 0.1 is one decibel, a factor of 1.26."""
    logs = (np.log10(np.maximum(power, ROUNDING)) for power in (a, b))
    return float(np.abs(np.subtract(*logs)).mean())


class _Power(NamedTuple):
    total: Any = 0.0  # of all images, [radii]
    images: int = 0


class _State(NamedTuple):
    reference: _Power = _Power()
    samples: _Power = _Power()


@dataclasses.dataclass(frozen=True)
class SpectrumDistance(Metric):
    """Distance between the mean power spectra of samples and test images. See `spectrum_distance`."""

    @property
    def streams(self) -> tuple[str, ...]:
        return ("test", "samples")

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        slot = "samples" if batch.stream == "samples" else "reference"
        known, n = getattr(state, slot), len(batch.images)
        return state._replace(
            **{slot: _Power(known.total + n * radial_power(batch.images), known.images + n)}
        )

    def compute(self, state: _State) -> dict[str, Any]:
        samples, reference = (power.total / power.images for power in (state.samples, state.reference))
        return {"spectrum": spectrum_distance(samples, reference)}

    def table(self) -> Sequence[Row]:
        return [Row("spectrum distance, log10", "spectrum", significant)]


def _hann(n: int) -> Float64[np.ndarray, "n"]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
