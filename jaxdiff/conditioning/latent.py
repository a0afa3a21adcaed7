"""Conditions of latent diffusion whose image is encoded by the task's own codec."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.conditioning.condition import ImageEncoder, Shape
from jaxdiff.conditioning.image import ImageCondition, ImageValues, appended, known_shape
from jaxdiff.conditioning.nulls import Null
from jaxdiff.conditioning.partial import PartialImage
from jaxdiff.data.masks import KNOWN
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import positive
from jaxdiff.typing import Array, Bool, Images, Keys


class LatentImage(ImageValues):
    """Latent image: appends the latents of an image to the channels of the noisy latents (Brooks et al. 2023,
    "InstructPix2Pix", section 3.2). They are the mode of the posterior, neither shifted nor scaled.

    Attributes:
      channels: number of channels of the image.
      factor: size of the latents over that of the image. It is no field of a config: the task's codec sets it.
      drop_rate: probability of showing the null in training.
      null: latents in place of those of the image, see `Null`.
    """

    not_in_configs: ClassVar[frozenset[str]] = frozenset({"factor"})

    channels: int = 3
    factor: float = 1 / 8
    drop_rate: float = 0.05
    null: Null = "zero"

    @nn.compact
    def __call__(self, values: Images, drop: Bool[Array, "batch"]) -> Embeddings:
        """Append latents, as `encoded` makes them."""
        return appended(self, values, drop)

    @nn.nowrap
    def encoded(self, values: Images, encoder: ImageEncoder, keys: Keys) -> Array:
        """The latents of images in [-1, 1]."""
        return encoder.latents(values)

    @nn.nowrap
    def for_images(self, shape: Shape, data_shape: Shape) -> "LatentImage":
        """This condition with the codec's factor."""
        return self.clone(factor=data_shape[0] / shape[0])

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Images:
        return jnp.zeros((batch, *known_shape(data_shape)))

    @nn.nowrap
    def stored_example(self, batch: int, data_shape: Shape | None = None) -> Images:
        return super().example(batch, data_shape)


class MaskedImage(PartialImage):
    """Masked image: appends the mask of the unknown pixels and the latents of the known ones to the channels of the
    noisy latents, as the inpainting models of Stable Diffusion (Rombach et al. 2022).

    Its values are those of a `PartialImage`. The mask is 1 at latents whose first pixel, at the top left, is unknown.
    Unknown pixels have the colour `fill` in the image that is encoded, mid-grey by default, and its latents are drawn
    and scaled as the data are.

    Attributes:
      factor: pixels along the side of a latent. It is no field of a config: the task's codec sets it.
      channels, fill, drop_rate, null: as in `PartialImage`.
    """

    not_in_configs: ClassVar[frozenset[str]] = frozenset({"factor"})
    replaces_known: ClassVar[bool] = False

    factor: int = 8

    def __post_init__(self):
        positive(self, "factor")
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Images, drop: Bool[Array, "batch"]) -> Embeddings:
        """Append the mask and the latents, as `encoded` makes them."""
        return appended(self, values, drop)

    @nn.nowrap
    def encoded(self, values: Images, encoder: ImageEncoder, keys: Keys) -> Array:
        """The mask and the latents [batch, height / factor, width / factor, 1 + latent channels] of partial images."""
        colours, unknown = values[..., :-1], values[..., -1:] < KNOWN
        mask = unknown[:, :: self.factor, :: self.factor].astype(jnp.float32)
        return jnp.concatenate([mask, encoder.data(jnp.where(unknown, self.fill, colours), keys)], axis=-1)

    @nn.nowrap
    def for_images(self, shape: Shape, data_shape: Shape) -> "MaskedImage":
        """This condition with the codec's factor."""
        return self.clone(factor=shape[0] // data_shape[0])

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Images:
        height, width, channels = known_shape(data_shape)
        return jnp.zeros((batch, height, width, 1 + channels))

    @nn.nowrap
    def stored_example(self, batch: int, data_shape: Shape | None = None) -> Images:
        return super().example(batch, data_shape)

    @nn.nowrap
    def _image(self, **options: Any) -> ImageCondition:
        return super()._image(factor=1 / self.factor, **options)
