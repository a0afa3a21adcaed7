"""Embeddings of photographs by CLIP's image encoder, for models of several stages (unCLIP's image variations)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.models.clip_vision import ClipVisionEncoder, clip_pixels
from jaxdiff.typing import Images, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Photographs:
    """CLIP's image encoder with its parameters: photographs to embeddings.

    Attributes:
      encoder: the network.
      params: its parameters.
    """

    encoder: ClipVisionEncoder
    params: Params

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Embeddings [n, dim] of uint8 images [n, height, width, 3], each resized and cut as CLIP does."""
        return np.asarray(_embedded(self.encoder, self.params, images))


@functools.partial(jax.jit, static_argnums=0)
def _embedded(encoder: ClipVisionEncoder, params: Params, images: Any) -> Any:
    pixels: Images = clip_pixels(images.astype(jnp.float32) / 255, encoder.image_size)
    found: Any = encoder.apply({"params": params}, pixels)
    return found.vector


def embedding(photographs: Photographs, value: Any) -> Any:
    """The embedding of a photograph, or of each of several; other values are returned as they are."""
    if isinstance(value, list | tuple) and len(value) > 0 and all(np.ndim(each) == 3 for each in value):
        return np.concatenate([embedding(photographs, np.asarray(each)[None]) for each in value])
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        return value
    if array.shape[-1] != 3:
        raise UserError(
            f"image=uint8{list(array.shape)}: expected photographs [height, width, 3], got others. Fix: give RGB images"
        )
    return photographs(array) if array.ndim == 4 else photographs(array[None])[0]
