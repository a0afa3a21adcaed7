"""Conditions that are images with transparency: what is opaque is known and stays, the rest is to be made."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.nulls import Null
from jaxdiff.data.masks import KNOWN, UNKNOWN
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import require
from jaxdiff.typing import Array, Bool, Images, Keys


class PartialImage(nn.Module):
    """An image and its alpha, joined to the channels of the noisy image: one condition for the tasks of "Palette"
    (Saharia et al. 2022), singly or all in one model.

    Values are floats [batch, height, width, channels + 1]. Where the last channel is 1, the pixel is known, and a
    `Generator` returns it exactly. Where it is -1, the pixel is to be made, and its colours are a hint: the grey image
    when colouring, lines when a sketch becomes a photo, what JPEG has left; or a flat fill, which says nothing, when a
    part of the image is missing. `jaxdiff.data.masks` makes such values of images.

    Bytes are pictures, with alpha or without. A pixel of a picture is known where alpha is 255; elsewhere its colours
    mean nothing, and `fill` takes their place. A picture without alpha is a hint: none of it is kept.

    Attributes:
      channels: of the images; values have one more.
      fill: what stands under the transparent pixels of a picture, between -1 and 1: that of training.
      drop_rate, null: as those of `ImageCondition`.
    """

    channels: int = 3
    fill: float = 0.0
    drop_rate: float = 0.0
    null: Null = "none"

    def __post_init__(self):
        require(self.channels > 0, "channels", self.channels, "there is no image", "give at least 1")
        require(-1 <= self.fill <= 1, "fill", self.fill, "it is no level of an image", "give -1 to 1")
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Images, drop: Bool[Array, "batch"]) -> Embeddings:
        return self._image(name="image")(values, drop)

    @nn.nowrap
    def read(self, value: object) -> np.ndarray:
        """Pictures as values: uint8 [..., height, width, 1, channels or channels + 1], where 1 is grey.

        In a list each may be of another kind. What is no picture, such as floats, stays as it is.
        """
        if isinstance(value, list | tuple):
            return np.stack([self.read(item) for item in value])
        return self._numbers(np.asarray(value), np)

    @nn.nowrap
    def draw(self, values: Array, keys: Keys, train: bool) -> Array:
        """Bytes as `read` has them; floats stay as they are."""
        return self._numbers(values, jnp)

    @nn.nowrap
    def known(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images of which a part is known, and a mask [..., height, width, 1], True where pixels are to be made."""
        return values[..., :-1], values[..., -1:] < KNOWN

    @nn.nowrap
    def example(self, batch: int, image_shape: tuple[int, int, int] | None = None) -> Images:
        return self._image(parent=None).example(batch, image_shape)

    @nn.nowrap
    def check(self, values: object, name: str = "image") -> None:
        """Raise `UserError` unless these are finite images with one channel more, which holds 1 and -1 only."""
        array = self.read(values)
        self._image(parent=None).check(array, name)
        alpha = array[..., -1]
        wrong = np.unique(alpha[np.abs(alpha) != KNOWN])[:3].tolist()
        fix = "give such floats, or pictures in bytes"
        require(not wrong, f"{name}.alpha", wrong, "it is 1 where a pixel is known, else -1", fix)

    @nn.nowrap
    def _image(self, **options: Any) -> ImageCondition:
        return ImageCondition(self.channels + 1, drop_rate=self.drop_rate, null=self.null, **options)

    @nn.nowrap
    def _numbers(self, given: Any, xp: Any) -> Any:
        """Values of bytes, with the functions of numpy or of JAX; anything else as it is."""
        depth = given.shape[-1] if given.ndim > 2 else 0
        if given.dtype != np.uint8 or depth not in (1, self.channels, self.channels + 1):
            return given
        numbers = given.astype(np.float32) / np.float32(127.5) - np.float32(1)
        if depth == self.channels + 1:
            opaque = given[..., -1:] == 255
            colours, alpha = numbers[..., :-1], xp.where(opaque, np.float32(KNOWN), np.float32(UNKNOWN))
            return xp.concatenate([xp.where(opaque, colours, np.float32(self.fill)), alpha], axis=-1)
        colours = xp.broadcast_to(numbers, (*given.shape[:-1], self.channels))
        return xp.concatenate([colours, xp.full_like(numbers[..., :1], UNKNOWN)], axis=-1)
