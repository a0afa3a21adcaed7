"""Conditions that are images: what is to be enlarged, coloured, translated or completed."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.nulls import Null
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, require
from jaxdiff.typing import Array, Bool, Images, Keys

Method = Literal["nearest", "bilinear", "bicubic"]
"""How an image is resized; "bicubic" is Keys's kernel with a = -1/2 (Keys 1981), as in PIL and TensorFlow."""


class ImageCondition(nn.Module):
    """An image, resized and joined to the channels of the noisy image (Saharia et al. 2021, "SR3", "Palette").

    Its size is free: whatever it is, `factor` times it must be the size of the noisy image. Pixel centres lie at half
    integers, edges are not extrapolated, and an image that shrinks is low-passed.

    Attributes:
      channels: of the image.
      factor: how much larger the noisy image is; below 1 it is smaller, as in a latent space.
      method: how it is resized.
      drop_rate: how often training shows the null.
      null: a colour in place of the image, see `Null`; by default there is none, and guidance shows the image in every
        branch.
    """

    channels: int
    factor: float = 1.0
    method: Method = "bilinear"
    drop_rate: float = 0.0
    null: Null = "none"

    def __post_init__(self):
        require(self.channels > 0, "channels", self.channels, "there is no image", "give at least 1")
        require(self.factor > 0, "factor", self.factor, "nothing would be left", "give a number > 0")
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, drop: Bool[Array, "batch"]) -> Embeddings:
        height, width = (_whole(side * self.factor, side, self.factor) for side in images.shape[1:3])
        if (height, width) != images.shape[1:3]:
            images = jax.image.resize(images, (images.shape[0], height, width, self.channels), self.method)
        return Embeddings(spatial=nulls.instead(self, images, drop, nn.initializers.zeros))

    @nn.nowrap
    def draw(self, images: Array, keys: Keys, train: bool) -> Images:
        """Bytes as numbers between -1 and 1; what is such already stays."""
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        return images if floats else images.astype(jnp.float32) / 127.5 - 1

    @nn.nowrap
    def example(self, batch: int, image_shape: tuple[int, int, int] | None = None) -> Images:
        if image_shape is None:
            fix = "give (height, width, channels)"
            raise UserError(f"image_shape=None: the size of this condition follows from it. Fix: {fix}")
        height, width = (_whole(side / self.factor, side, 1 / self.factor) for side in image_shape[:2])
        return jnp.zeros((batch, height, width, self.channels))

    @nn.nowrap
    def check(self, images: object, name: str = "image") -> None:
        """Raise `UserError` unless these are images with the right channels: bytes, or finite numbers."""
        array = np.asarray(images)
        floats = np.issubdtype(array.dtype, np.floating)
        if not (floats or array.dtype == np.uint8) or array.ndim != 4 or array.shape[-1] != self.channels:
            fix = f"give uint8 [n, height, width, {self.channels}], or floats between -1 and 1"
            raise UserError(f"{name}={array.dtype}{list(array.shape)}: these are no such images. Fix: {fix}")
        require(not floats or bool(np.all(np.isfinite(array))), name, f"{array.dtype}{list(array.shape)}",
                "it holds NaN or infinity", "give finite numbers")  # fmt: skip


def _whole(size: float, side: int, factor: float) -> int:
    whole = round(size)
    require(whole > 0 and abs(size - whole) < 1e-6 * whole, "factor", factor,
            f"it makes {side} pixels to {size:.4g}", "use sizes that it divides")  # fmt: skip
    return whole
