"""Image conditions: an image to enlarge, colour, translate or complete."""

import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import Condition, Shape
from jaxdiff.conditioning.nulls import Null
from jaxdiff.data.image_files import read_image
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, expect, positive
from jaxdiff.typing import Array, Bool, Images, Keys

Method = Literal["nearest", "bilinear", "bicubic"]
"""How an image is resized; "bicubic" is Keys's kernel with a = -1/2 (Keys 1981), as in PIL and TensorFlow."""


class ImageValues(Condition):
    """The base of conditions whose values are images: their reading, checking and sizes.

    Attributes:
      channels: number of channels of the image.
      factor: size of the noisy image over the size of the condition; below 1 in a latent space.
    """

    channels: int
    factor: float = 1.0

    def __post_init__(self):
        positive(self, "channels", "factor")
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.nowrap
    def draw(self, values: Array, keys: Keys, train: bool) -> Images:
        """Bytes as floats in [-1, 1]; floats stay as they are."""
        floats = jnp.issubdtype(values.dtype, jnp.floating)
        return values if floats else values.astype(jnp.float32) / 127.5 - 1

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Images:
        return jnp.zeros((batch, *self.image_shape(known_shape(data_shape))))

    @nn.nowrap
    def image_shape(self, data_shape: Shape) -> tuple[int, int, int]:
        height, width = (_integer(side / self.factor, side, 1 / self.factor) for side in data_shape[:2])
        return height, width, self.channels

    @nn.nowrap
    def read(self, value: object, name: str = "image") -> np.ndarray:
        """One image or several of one size, bytes or floats."""
        if isinstance(value, list | tuple):
            return stack([np.asarray(image) for image in value], name)
        return np.asarray(value)

    @nn.nowrap
    def check(self, values: object, name: str = "image") -> None:
        """Raise `UserError` unless these are images with the right channels, as bytes or finite floats."""
        array = np.asarray(values)
        got = f"{array.dtype}{list(array.shape)}"
        floats = np.issubdtype(array.dtype, np.floating)
        if not (floats or array.dtype == np.uint8) or array.ndim != 4 or array.shape[-1] != self.channels:
            raise UserError(
                f"{name}={got}: expected images [n, height, width, {self.channels}], got {got}. "
                "Fix: give uint8, or floats between -1 and 1"
            )
        finite = not floats or bool(np.all(np.isfinite(array)))
        expect(finite, name, got, "finite numbers", "remove NaN and infinity", "NaN or infinity")

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        """The image of a file."""
        return [read_image(name, text, self.channels)]

    @nn.nowrap
    def from_json(self, value: Any, name: str, folder: pathlib.Path) -> Any:
        """The image of a file, relative to `folder`."""
        return None if value is None else self.parse(path_in(folder, value, name), name)[0]

    @nn.nowrap
    def images(self, values: Any) -> np.ndarray:
        return np.asarray(values)


class ImageCondition(ImageValues):
    """Image condition: resizes an image and appends it to the channels of the noisy image (Saharia et al. 2021, "SR3",
    "Palette").

    Its size is free: `factor` times its size must be the size of the noisy image. Pixel centres lie at half integers,
    edges are not extrapolated, and an image that shrinks is low-passed.

    Attributes:
      channels, factor: as in `ImageValues`.
      method: how the image is resized.
      drop_rate: probability of showing the null in training.
      null: a colour in place of the image, see `Null`. By default there is none, and guidance shows the image in both
        branches.
    """

    method: Method = "bilinear"
    drop_rate: float = 0.0
    null: Null = "none"

    @nn.compact
    def __call__(self, values: Images, drop: Bool[Array, "batch"]) -> Embeddings:
        height, width = (_integer(side * self.factor, side, self.factor) for side in values.shape[1:3])
        if (height, width) != values.shape[1:3]:
            values = jax.image.resize(values, (values.shape[0], height, width, self.channels), self.method)
        return appended(self, values, drop)


def appended(part: Condition, values: Images, drop: Bool[Array, "batch"]) -> Embeddings:
    """Images or latents as channels, with the null of `part` where it is dropped."""
    return Embeddings(spatial=nulls.replace_dropped(part, part.null, values, drop, nn.initializers.zeros))


def known_shape(data_shape: Shape | None) -> Shape:
    """The shape of the data.

    Raises:
      UserError: it is None.
    """
    if data_shape is None:
        raise UserError(
            "data_shape=None: expected the shape of the data, which sets the size of this condition, got None. "
            "Fix: give (height, width, channels)"
        )
    return data_shape


def stack(images: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Images of one size as one array.

    Raises:
      UserError: the sizes differ.
    """
    sizes = sorted({image.shape[:2] for image in images if image.ndim > 2})
    if len(sizes) > 1:
        first, other = (f"{width}x{height}" for height, width in sizes[:2])
        raise UserError(
            f"{name}: expected images of one size, got {first} and {other} pixels. "
            "Fix: give images of one size at a time"
        )
    return np.stack(images) if images else np.empty((0,))


def path_in(folder: pathlib.Path, value: object, name: str) -> str:
    """A path that a JSON value gives, relative to `folder`."""
    if not isinstance(value, str):
        raise UserError(f"{name}={value!r}: expected the path of an image, got {value!r}. Fix: give a string")
    return str(folder / pathlib.Path(value).expanduser())


def _integer(size: float, side: int, factor: float) -> int:
    rounded = round(size)
    expect(
        rounded > 0 and abs(size - rounded) < 1e-6 * rounded, "factor", factor,
        f"an integer number of pixels for a side of {side}", "use sizes that it divides", f"{size:.4g}",
    )  # fmt: skip
    return rounded
