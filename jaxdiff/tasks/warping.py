"""Affine warps of images without aliasing: values between pixels are interpolated with a wavelet's low-pass filter."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.typing import Array, Float, Images

# The low-pass filter of the least asymmetric wavelet with six vanishing moments (Daubechies 1992, table 6.3), "sym6".
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
REACH = len(SYM6) // 2 - 1  # half pixels that the filter extends backward; forward, it extends one more


def warp(images: Images, matrix: Float[Array, "batch 2 2"], shift: Float[Array, "batch 2"]) -> Images:
    """Affine warp with one map per image (Karras et al. 2020, "ADA", appendix B.2).

    The output at ``p = (x, y)`` is the input at ``matrix p + shift``, in pixels from the centre, x to the right and y
    down. Images are extended by reflection, periodically. The image is upsampled to half pixels with the filter,
    interpolated linearly between them, and downsampled with the same filter. The filter is orthogonal, so the identity
    map returns the image.

    Args:
      images: [batch, height, width, channels].
      matrix, shift: the maps from output to input positions.

    Returns:
      The warped images, with the shape of `images`.
    """
    height, width = images.shape[1:3]
    fine = _along(_along(images, _upsampling(height), 1), _upsampling(width), 2)
    x, y = (np.arange(2 * side + 2 * REACH) / 2 - REACH / 2 - (side - 1) / 2 for side in (width, height))
    grid = np.stack([*np.meshgrid(x, y), np.ones((len(y), len(x)))]).astype(np.float32)
    corner = jnp.asarray([[width - 1, height - 1]], shift.dtype)
    to_fine = jnp.concatenate([2 * matrix, (2 * shift + corner)[..., None]], axis=-1)
    # A dot product is computed once. The compiler could round a sum of products differently where it is used twice:
    # near a whole number, the pixels that are read would then not be those of the weights.
    there = jnp.einsum(
        "bij,jyx->ibyx", to_fine, grid.astype(shift.dtype), precision=jax.lax.Precision.HIGHEST
    )
    looked_up = jax.vmap(_look_up)(fine, there[1], there[0])
    return _along(_along(looked_up, _downsampling(height), 1), _downsampling(width), 2)


def _look_up(
    image: Float[Array, "height width channels"],
    y: Float[Array, "rows columns"],
    x: Float[Array, "rows columns"],
) -> Float[Array, "rows columns channels"]:
    """Linear interpolation of a periodic image at fractional indices."""
    height, width, channels = image.shape
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = (y - top)[..., None], (x - left)[..., None]
    rows = [(top.astype(int) + i) % height for i in (0, 1)]
    columns = [(left.astype(int) + i) % width for i in (0, 1)]
    flat = image.reshape(-1, channels)
    (a, b), (c, d) = ([flat[row * width + column] for column in columns] for row in rows)
    return (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)


def _along(images: Images, matrix: np.ndarray, axis: int) -> Array:
    """Product of `matrix` with the rows or columns of images."""
    weights = jnp.asarray(matrix, images.dtype)
    product = jnp.tensordot(images, weights, axes=(axis, 1), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, -1, axis)


def _upsampling(side: int) -> np.ndarray:
    """Matrix from pixels to half pixels, over one period of their reflection."""
    period = max(2 * side - 2, 1)
    matrix = np.zeros((2 * period, side))
    for pixel in range(period):
        for i, weight in enumerate(SYM6):
            matrix[(2 * pixel + i - REACH) % (2 * period), min(pixel, period - pixel) % side] += weight
    return matrix


def _downsampling(side: int) -> np.ndarray:
    """Matrix from half pixels to pixels, the adjoint. The first half pixel is the first under the filter of pixel 0."""
    matrix = np.zeros((side, 2 * side + 2 * REACH))
    for pixel in range(side):
        matrix[pixel, 2 * pixel : 2 * pixel + len(SYM6)] = SYM6
    return matrix
