"""Resizing along one axis as a matrix [new, old], in the definitions of the libraries before published networks.

Libraries disagree about positions, kernels and low-passing, and features of a network change with them (Parmar et al.
2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation"). All are linear and separable, so two matrices
are the whole operation: ``rows @ image @ columns.T``.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from jaxdiff.models.layers import HIGHEST
from jaxdiff.typing import Features, Images

Matrix = Float32[np.ndarray, "new old"]

KEYS, SHARPER = -0.5, -0.75
"""The parameter of the cubic kernel: that of Keys (1981), also of Pillow, and that of PyTorch without a low-pass."""


def interpolate(
    x: Images,
    rows: Float32[np.ndarray, "out_height height"],
    columns: Float32[np.ndarray, "out_width width"],
) -> Features:
    """Images resized by a matrix for their rows and one for their columns, in float32."""
    x = jnp.einsum("qw,bhwc->bhqc", columns, x, precision=HIGHEST)
    return jnp.einsum("ph,bhqc->bpqc", rows, x, precision=HIGHEST)


def tensorflow_bilinear(old: int, new: int) -> Matrix:
    """``resize_bilinear`` of TensorFlow 1: pixel i lies at ``i old / new``, and not at its centre. No low-pass.

    Positions are rounded to float32 as there, since one that is nearly an integer may belong to either neighbour.
    """
    positions = np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))
    return _linear(positions, old)


def bilinear(old: int, new: int) -> Matrix:
    """``interpolate(mode="bilinear", align_corners=False)`` of PyTorch: centres at half integers. No low-pass."""
    positions = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    return _linear(np.maximum(positions, 0), old)


def bicubic(old: int, new: int, scale: float | None = None) -> Matrix:
    """``interpolate(mode="bicubic", align_corners=False)`` of PyTorch: the sharper kernel. No low-pass.

    Args:
      scale: new pixels for each old one where it is not ``new / old``: PyTorch's ``scale_factor``.
    """
    step = np.float32(1 / (scale or new / old))
    positions = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    first = np.floor(positions).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        weights = _cubic(positions.astype(float) - (first + tap), SHARPER)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weights)
    return matrix.astype(np.float32)


def antialiased_bicubic(old: int, new: int) -> Matrix:
    """Pillow's ``BICUBIC``, and PyTorch's with ``antialias=True``: Keys's kernel, widened where an image shrinks."""
    stretch = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * (old / new)
    weights = _cubic((np.arange(old) + 0.5 - centres[:, None]) / stretch, KEYS)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _linear(positions: np.ndarray, old: int) -> Matrix:
    """Each new pixel between the two old ones around its position; the last old one also stands for those behind it."""
    lower = np.minimum(np.floor(positions).astype(int), old - 1)
    fraction = np.float32(positions) - np.float32(lower)
    matrix, rows = np.zeros((len(positions), old), np.float32), np.arange(len(positions))
    np.add.at(matrix, (rows, lower), 1 - fraction)
    np.add.at(matrix, (rows, np.minimum(lower + 1, old - 1)), fraction)
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981, equation 15, with its parameter): 1 at 0, and 0 at other integers."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
