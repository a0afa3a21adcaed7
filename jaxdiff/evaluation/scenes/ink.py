"""The ink of scenes: where it is, and in which strip of the canvas each digit of a layout stands."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

SLACK = 4  # pixels by which the digits of a row may differ in height
STRAY = 0.1  # largest fraction of the ink outside the strips of the layout
SPECK = 2.0  # connected ink below this is noise; a pixel of full brightness is 1
LEAST = 5.0  # least ink of a digit; real digits have twice as much or more
FAINT = 0.12  # ink below this counts as background; 1 is the brightest


def ink_of(
    images: UInt8[np.ndarray, "n height width 3"], faint: float
) -> UInt8[np.ndarray, "n height width"]:
    """The brightest channel, without faint pixels and specks."""
    from scipy import ndimage

    ink = images.max(axis=-1)
    ink = np.where(ink < 255 * faint, 0, ink).astype(np.uint8)
    touching = np.zeros((3, 3, 3))
    touching[1] = 1  # within an image, corners included
    parts = np.empty(ink.shape, np.int32)
    ndimage.label(ink, touching, output=parts)
    return np.where(np.bincount(parts.ravel(), ink.ravel())[parts] < 255 * SPECK, 0, ink).astype(np.uint8)


def is_digit(ink: UInt8[np.ndarray, "height width"]) -> bool:
    """Whether a strip has enough ink for a digit."""
    return bool(ink.sum() >= 255 * LEAST)


def strips(
    ink: UInt8[np.ndarray, "height width"], count: int, stacked: bool
) -> Iterator[tuple[slice, slice]]:
    """The strips of the digits of a layout; none if too much of the ink lies outside."""
    from jaxdiff.data.scenes import SIDE, SIZE

    width = SIDE if count == 1 else SIDE + SLACK
    strip = width if count == 1 else SIZE // count
    across = fullest(ink.sum(axis=0 if stacked else 1), width)
    start = fullest(ink.sum(axis=1 if stacked else 0), strip).start if count == 1 else 0
    along = slice(start, start + strip * count)
    covered = (along, across) if stacked else (across, along)
    if ink[covered].sum() < (1 - STRAY) * ink.sum():
        return
    for i in range(count):
        part = slice(start + i * strip, start + (i + 1) * strip)
        yield (part, across) if stacked else (across, part)


def fullest(profile: np.ndarray, width: int) -> slice:
    """The window with the most ink; of several the middle one, where a digit has room on both sides."""
    sums = np.convolve(profile.astype(int), np.ones(width, int), "valid")
    best = np.flatnonzero(sums == sums.max())
    start = int(best[len(best) // 2])
    return slice(start, start + width)
