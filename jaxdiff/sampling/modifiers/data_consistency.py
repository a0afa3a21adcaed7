"""Data consistency: samples that agree exactly with a given low-resolution image."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxdiff.errors import UserError, expect
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.modifiers.thresholding import with_x_0
from jaxdiff.sampling.protocols import Conditions, GuidedDenoiser
from jaxdiff.typing import Array, Data, Float, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class DataConsistency:
    """DDNM: gives the predicted image the local means of a low-resolution image.

    ``x_0 + U (y - D x_0)``: D averages over squares, as `Downsample(factor, "area")` does, and U, which repeats
    pixels, is its pseudo-inverse. So the model decides only what is in the null space of D (Wang, Yu & Zhang 2023,
    "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", equation 9). It suits clean low-resolution
    images, not noisy ones or those that another model has generated.

    Attributes:
      condition: name of the low-resolution image among the conditions; samples without it are unchanged.
    """

    condition: str = "low_res"

    def __call__(
        self, denoise: GuidedDenoiser, process: Process, conditions: Conditions, keys: Keys
    ) -> GuidedDenoiser:
        names = ", ".join(conditions) or "none"
        expect(
            self.condition in conditions,
            "sampling.modifiers.condition",
            self.condition,
            "a condition of the model",
            f"name one of: {names}",
        )
        low_res = conditions[self.condition]
        value: Any = low_res.value
        small = value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.float32) / 127.5 - 1

        def consistent(prediction: Prediction, x: Data, t: Scalar) -> Prediction:
            residual = small - _means(prediction.x_0, small)
            residual = jnp.where(low_res.absent.reshape(-1, 1, 1, 1), 0.0, residual)
            factor = x.shape[1] // small.shape[1]
            x_0 = prediction.x_0 + jnp.repeat(jnp.repeat(residual, factor, axis=1), factor, axis=2)
            return with_x_0(prediction, x_0, process.signal(t))

        return denoise.then(consistent)


def _means(images: Data, small: Float[Array, "batch rows columns depth"]) -> Array:
    """Means over the squares of an image that correspond to the pixels of a smaller one."""
    rows, columns, depth = small.shape[1:]
    if images.ndim != 4:
        raise UserError(
            "sampling.modifiers=DataConsistency: expected images [height, width, channels], got data of shape "
            f"{images.shape[1:]}. Fix: leave it out"
        )
    height, width, channels = images.shape[1:]
    factor = height // rows
    if (rows * factor, columns * factor, depth) != (height, width, channels):
        raise UserError(
            f"sampling.modifiers.condition: expected an image whose size divides {height}x{width}x{channels}, "
            f"got {rows}x{columns}x{depth}. Fix: leave DataConsistency out, or give one that does"
        )
    return images.reshape(-1, rows, factor, columns, factor, channels).mean(axis=(2, 4))
