"""Partial images: images with alpha, whose opaque pixels are known and kept, and whose other pixels are generated."""

import pathlib
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import Condition, Shape
from jaxdiff.conditioning.image import ImageCondition, path_in, stack
from jaxdiff.conditioning.nulls import Null
from jaxdiff.data import images as image_arrays
from jaxdiff.data.image_files import read_image
from jaxdiff.data.masks import KNOWN, UNKNOWN
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, between, expect, positive
from jaxdiff.typing import Array, Bool, Images, Keys


class PartialImage(Condition):
    """Partial image: appends an image and its alpha to the channels of the noisy image. One condition for the tasks of
    "Palette" (Saharia et al. 2022), singly or all in one model.

    Values are floats [batch, height, width, channels + 1]. Where the last channel is 1, the pixel is known, and a
    `Generator` returns it exactly. Where it is -1, the pixel is generated, and its colours are a hint: the grey image
    for colouring, lines for sketch to photo, a compressed image for JPEG restoration; or a flat fill without
    information, where a part of the image is missing. `jaxdiff.data.masks` makes such values from images.

    Bytes are images with or without alpha. With alpha, a pixel is known where alpha is 255; elsewhere its colours are
    replaced by `fill`. An image without alpha is a hint: none of its pixels is kept.

    Attributes:
      channels: number of channels of the images; values have one more.
      fill: colour of the transparent pixels in [-1, 1]; must be the same as in training.
      drop_rate, null: as in `ImageCondition`.
    """

    flag: ClassVar[str | None] = "known"

    channels: int = 3
    fill: float = 0.0
    drop_rate: float = 0.0
    null: Null = "none"

    def __post_init__(self):
        positive(self, "channels")
        between(self, "fill", -1.0, 1.0)
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Images, drop: Bool[Array, "batch"]) -> Embeddings:
        return self._image(name="image")(values, drop)

    @nn.nowrap
    def read(self, value: object, name: str = "image") -> np.ndarray:
        """Values from images: uint8 [..., height, width, 1, channels or channels + 1], where 1 is grey.

        The images of a list may differ in their channels. Floats stay as they are.
        """
        if isinstance(value, list | tuple):
            return stack([self.read(item, name) for item in value], name)
        return self._to_values(np.asarray(value), np)

    @nn.nowrap
    def draw(self, values: Array, keys: Keys, train: bool) -> Array:
        """Bytes as in `read`; floats stay as they are."""
        return self._to_values(values, jnp)

    @nn.nowrap
    def known_pixels(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images, and a mask [..., height, width, 1] that is True at the pixels to generate."""
        return values[..., :-1], values[..., -1:] < KNOWN

    @nn.nowrap
    def masked(self, value: object, mask: np.ndarray, name: str = "image") -> Any:
        """The image, or each image of a list or an array, transparent where `mask` is True and opaque elsewhere.

        Raises:
          UserError: the image has transparent pixels of its own; or the mask is not one bool for each pixel.
        """
        if isinstance(value, list | tuple):
            return [None if item is None else self.masked(item, mask, name) for item in value]
        values = self.read(value, name)
        colours, generated = self.known_pixels(values)
        if not generated.all():
            raise UserError(
                f"{name}: expected an image without transparent pixels of its own, got some. "
                "Fix: leave the mask out, or give an image without transparency"
            )
        got, expected = f"{mask.dtype}{list(mask.shape)}", f"a bool for each pixel of {list(colours.shape)}"
        fits = mask.dtype == bool and mask.shape[-3:] == generated.shape[-3:]
        expect(fits, "mask", got, expected, "give such an array", got)
        shape = np.broadcast_shapes(mask.shape, generated.shape)[:-1]
        alpha = np.broadcast_to(np.where(mask, np.uint8(0), np.uint8(255)), (*shape, 1))
        pixels = np.broadcast_to(image_arrays.to_uint8(colours), (*shape, self.channels))
        return self.read(np.concatenate([pixels, alpha], axis=-1), name)

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Images:
        return self._image(parent=None).example(batch, data_shape)

    @nn.nowrap
    def image_shape(self, data_shape: Shape) -> tuple[int, int, int]:
        return self._image(parent=None).image_shape(data_shape)

    @nn.nowrap
    def check(self, values: object, name: str = "image") -> None:
        """Raise `UserError` unless these are finite images with a last channel of 1 and -1 only."""
        array = self.read(values, name)
        self._image(parent=None).check(array, name)
        alpha = array[..., -1]
        wrong = np.unique(alpha[np.abs(alpha) != KNOWN])[:3].tolist()
        fix = "give such floats, or images in bytes"
        expect(not wrong, f"{name}.alpha", wrong, "1 where a pixel is known, else -1", fix)

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        """The values of an image file. It is a hint if no pixel is transparent, even with an alpha channel."""
        image = read_image(name, text, self.channels + 1)
        opaque = np.all(image[..., -1] == 255)
        return [self.read(image[..., :-1] if opaque else image, name)]

    @nn.nowrap
    def from_json(self, value: Any, name: str, folder: pathlib.Path) -> Any:
        """The values of an image file, relative to `folder`."""
        return None if value is None else self.parse(path_in(folder, value, name), name)[0]

    @nn.nowrap
    def images(self, values: Any) -> np.ndarray:
        """The colours."""
        return self.read(values)[..., :-1]

    @nn.nowrap
    def _image(self, **options: Any) -> ImageCondition:
        return ImageCondition(self.channels + 1, drop_rate=self.drop_rate, null=self.null, **options)

    @nn.nowrap
    def _to_values(self, given: Any, xp: Any) -> Any:
        """Values from bytes, with the functions of numpy or of JAX; other arrays stay as they are."""
        depth = given.shape[-1] if given.ndim > 2 else 0
        if given.dtype != np.uint8 or depth not in (1, self.channels, self.channels + 1):
            return given
        floats = given.astype(np.float32) / np.float32(127.5) - np.float32(1)
        if depth == self.channels + 1:
            opaque = given[..., -1:] == 255
            colours, alpha = floats[..., :-1], xp.where(opaque, np.float32(KNOWN), np.float32(UNKNOWN))
            return xp.concatenate([xp.where(opaque, colours, np.float32(self.fill)), alpha], axis=-1)
        colours = xp.broadcast_to(floats, (*given.shape[:-1], self.channels))
        return xp.concatenate([colours, xp.full_like(floats[..., :1], UNKNOWN)], axis=-1)
