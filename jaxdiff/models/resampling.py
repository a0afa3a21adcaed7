"""Resampling by a factor of 2: means of pixels and repeated pixels, or smoother filters; patches as channels."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxdiff.errors import expect
from jaxdiff.typing import Array, Features, Float, Images

Resample = Literal["none", "down", "up"]


def resample(x: Images, how: Resample, taps: Sequence[float] = (1.0, 1.0)) -> Features:
    """Halve ("down") or double ("up") height and width, or leave `x` as it is ("none").

    The filter is the outer product of `taps` with themselves, scaled to a sum of 1; images are 0 beyond their border.
    (1, 1) takes means of 2 x 2 pixels and repeats pixels (ADM); (1, 3, 3, 1) is the smoother filter of StyleGAN2 and
    NCSN++ (Karras et al. 2020; Song et al. 2021, appendix H.1), and its own adjoint but for a factor of 4.
    """
    if how == "none":
        return x
    if how == "up":
        weights = _normalised(taps)
        return _double(_double(x, 1, weights), 2, weights)
    return decimate(jnp.pad(x, ((0, 0), border(taps), border(taps), (0, 0))), taps)


def check_taps(taps: Sequence[float]) -> None:
    """Raise a `UserError` unless `taps` is a filter that halves the resolution."""
    expect(
        len(taps) > 0 and len(taps) % 2 == 0 and sum(taps) > 0,
        "resample_taps",
        taps,
        "an even number of taps with a positive sum",
        "try (1.0, 1.0) or (1.0, 3.0, 3.0, 1.0)",
    )


def to_patches(x: Images, side: int) -> Features:
    """Squares of `side` x `side` pixels as the channels of one position: [.., h, w, c] to [.., h/s, w/s, s*s*c].

    The channels are ordered by row, column and channel of the pixel.
    """
    if side == 1:
        return x
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // side, side, width // side, side, channels)
    return squares.swapaxes(2, 3).reshape(batch, height // side, width // side, side * side * channels)


def from_patches(x: Features, side: int) -> Images:
    """The inverse of `to_patches`."""
    if side == 1:
        return x
    batch, rows, columns, width = x.shape
    squares = x.reshape(batch, rows, columns, side, side, width // side**2)
    return squares.swapaxes(2, 3).reshape(batch, rows * side, columns * side, width // side**2)


def decimate(x: Images, taps: Sequence[float] = (1.0, 1.0)) -> Features:
    """``y[i] = sum_k taps[k] x[2 i + k]`` along height and width, taps scaled to a sum of 1.

    `x` is already padded by `border`.
    """
    weights = _normalised(taps)
    for axis in (1, 2):
        end = x.shape[axis] - len(weights) + 1
        x = _sum(weights, [jax.lax.slice_in_dim(x, k, k + end, 2, axis) for k in range(len(weights))])
    return x


def border(taps: Sequence[float]) -> tuple[int, int]:
    """Padding before and after each row: the taps on either side of the pair of pixels that becomes one."""
    return ((len(taps) - 1) // 2, len(taps) - 2 - (len(taps) - 1) // 2)


def _double(x: Float[Array, "..."], axis: int, weights: Sequence[float]) -> Float[Array, "..."]:
    """``y[j] = 2 sum_i weights[j + before - 2 i] x[i]``, the even and the odd j separately."""
    before, _ = border(weights)
    size, reach = x.shape[axis], (len(weights) - 1) // 2
    widths = [(0, 0)] * x.ndim
    widths[axis] = (reach, reach)
    padded = jnp.pad(x, widths)
    phases = []
    for odd in (0, 1):
        shifts = [(d, odd + before - 2 * d) for d in range(-reach, reach + 1)]
        used = [(d, weights[k]) for d, k in shifts if 0 <= k < len(weights)]
        moved = [jax.lax.slice_in_dim(padded, reach + d, reach + d + size, 1, axis) for d, _ in used]
        phases.append(_sum([2 * weight for _, weight in used], moved))
    shape = (*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _normalised(taps: Sequence[float]) -> list[float]:
    return [tap / sum(taps) for tap in taps]


def _sum(weights: Sequence[float], values: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
    """Taps of equal weight are added before they are multiplied."""
    groups: dict[float, Array] = {}
    for weight, value in zip(weights, values, strict=True):
        groups[weight] = groups[weight] + value if weight in groups else value
    terms = [value if weight == 1 else weight * value for weight, value in groups.items()]
    return sum(terms[1:], terms[0])
