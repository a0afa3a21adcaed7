"""A dual encoder of images and texts, as CLIP (Radford et al. 2021): two networks whose vectors share one space."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import positive
from jaxdiff.models.layers import Dense
from jaxdiff.typing import Array, Float, Images


class DualEncoder(nn.Module):
    """Dual encoder: the unit vectors of images and of texts, and the factor of their cosines (Radford et al. 2021).

    Attributes:
      image: module from pixels to `Embeddings` with a vector, such as `jaxdiff.models.clip_vision.ClipVisionEncoder`.
      text: module from ids to `Embeddings` with a vector of the same width, such as a
        `jaxdiff.models.clip_text.ClipTextEncoder` with ``pooled=True``, or `PooledEncoder`.
      temperature: the inverse of the factor at the start; 0.07 in the paper.
    """

    image: nn.Module
    text: nn.Module
    temperature: float = 0.07

    def __post_init__(self):
        positive(self, "temperature")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, pixels: Images, ids: Int[Array, "batch length"]
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"], Float[Array, ""]]:
        """Unit vectors of the images and of the texts, and the logarithm of the factor of their cosines."""
        scale: Any = self.param("log_scale", nn.initializers.constant(-math.log(self.temperature)), ())
        return self.image_vectors(pixels), self.text_vectors(ids), scale

    def image_vectors(self, pixels: Images) -> Float[Array, "batch dim"]:
        """Unit vectors of images, as the image encoder reads them."""
        return unit(self.image(pixels).vector)

    def text_vectors(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch dim"]:
        """Unit vectors of texts."""
        return unit(self.text(ids).vector)


class PooledEncoder(nn.Module):
    """A text encoder with a vector: the mean of its tokens, through a matrix without bias.

    Attributes:
      encoder: module from ids to `Embeddings` with tokens, such as `jaxdiff.models.text_encoder.ByteTransformer`.
      projection: width of the vector.
    """

    encoder: nn.Module
    projection: int

    def __post_init__(self):
        positive(self, "projection")
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"]) -> Embeddings:
        """The encoder's tokens, and the vector."""
        tokens = self.encoder(ids).tokens
        shown = tokens.mask[..., None].astype(tokens.features.dtype)
        mean = jnp.sum(shown * tokens.features, axis=1) / jnp.maximum(jnp.sum(shown, axis=1), 1)
        return Embeddings(vector=Dense(self.projection, bias=False, name="projection")(mean), tokens=tokens)


def unit(vectors: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    """Vectors divided by their lengths, in float32; the vector of zeros stays."""
    vectors = vectors.astype(jnp.float32)
    square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
