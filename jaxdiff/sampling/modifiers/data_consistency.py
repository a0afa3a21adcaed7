"""Images that agree with a smaller one exactly."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxdiff.errors import UserError, require
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import Conditions, DenoiseFn
from jaxdiff.sampling.modifiers.thresholding import with_image
from jaxdiff.typing import Array, Float, Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class DataConsistency:
    """The predicted image with the means over squares that a given small image has.

    ``x_0 + U (y - D x_0)``: D takes means over squares, as `Downsample(factor, "area")` does, and U, which repeats
    pixels, is its pseudo-inverse. So the model decides only what D does not see ("DDNM", Wang, Yu & Zhang 2023,
    "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", equation 9). For small images that are as
    they should be, not for those that another model has made, or that are noisy.

    Attributes:
      condition: the name of the small image among the conditions; an image without it stays as the model makes it.
    """

    condition: str = "low_res"

    def __call__(self, denoise: DenoiseFn, process: Process, conditions: Conditions, keys: Keys) -> DenoiseFn:
        names = ", ".join(conditions) or "none"
        require(self.condition in conditions, "sampling.modifiers.condition", self.condition,
                "the model has no such condition", f"it has: {names}")  # fmt: skip
        given = conditions[self.condition]
        value: Any = given.value
        small = value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.float32) / 127.5 - 1

        def matched(x: Images, t: Scalar) -> Prediction:
            found = denoise(x, t)
            lacking = small - _means(found.x_0, small)
            lacking = jnp.where(given.absent.reshape(-1, 1, 1, 1), 0.0, lacking)
            factor = x.shape[1] // small.shape[1]
            x_0 = found.x_0 + jnp.repeat(jnp.repeat(lacking, factor, axis=1), factor, axis=2)
            return with_image(found, x_0, process.signal(t))

        return matched


def _means(images: Images, small: Float[Array, "batch rows columns depth"]) -> Array:
    """Over the squares of an image that the pixels of a smaller one stand for."""
    (_, height, width, channels), (_, rows, columns, depth) = images.shape, small.shape
    factor = height // rows
    if (rows * factor, columns * factor, depth) != (height, width, channels):
        raise UserError(
            f"sampling.modifiers.condition: an image of {rows}x{columns}x{depth} is no whole fraction of "
            f"{height}x{width}x{channels}. Fix: leave DataConsistency out, or give one that is"
        )
    return images.reshape(-1, rows, factor, columns, factor, channels).mean(axis=(2, 4))
