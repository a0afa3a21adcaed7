"""Image prompts: an image in place of a text, or beside it (IP-Adapter, Ye et al. 2023)."""

import pathlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import Condition, Shape
from jaxdiff.conditioning.image import path_in, stack
from jaxdiff.conditioning.nulls import Null
from jaxdiff.data.image_files import read_image
from jaxdiff.embeddings import Embeddings, ImagePrompt
from jaxdiff.errors import UserError, finite
from jaxdiff.models.clip_vision import ClipVisionEncoder, clip_pixels
from jaxdiff.typing import Array, Bool, Images, Keys


class PromptImage(Condition):
    """Image prompt of an IP-Adapter: an image through CLIP's encoder, as tokens with keys and values of their own.

    The keys and values are parameters of the network's cross-attention, named ``key_value_ADAPTER``. Users give uint8
    images of any size, which are resized and cut as CLIP reads them.

    Attributes:
      encoder: CLIP's image encoder.
      projection: module from the encoder's `Embeddings` to tokens, `jaxdiff.models.ip_adapter.ImageProjection` or
        `Resampler`.
      adapter: the name of the adapter; several of them act side by side.
      scale: factor of what the attention to the image adds; 0 switches it off.
      drop_rate: probability of showing the null in training; 0.05 in the paper.
      null: "zero" is zeros in place of the encoder's vector, and the tokens of an image of zeros.
    """

    encoder: ClipVisionEncoder
    projection: nn.Module
    adapter: str = "image"
    scale: float = 1.0
    drop_rate: float = 0.05
    null: Null = "zero"

    def __post_init__(self):
        finite(self, "scale")
        nulls.check(self.null, self.drop_rate, ("zero", "none"))
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Images, drop: Bool[Array, "batch"]) -> Embeddings:
        zeros = nn.initializers.zeros
        encoded: Any = self.encoder(nulls.replace_dropped(self, self.null, values, drop, zeros))
        vector = nulls.replace_dropped(self, self.null, encoded.vector, drop, zeros)
        tokens = self.projection(encoded.replace(vector=vector))
        scale = jnp.full((values.shape[0],), self.scale, jnp.float32)
        return Embeddings(image_prompts={self.adapter: ImagePrompt(tokens, scale)})

    @nn.nowrap
    def draw(self, values: Array, keys: Keys, train: bool) -> Images:
        """Bytes as the encoder reads them; floats stay as they are."""
        if jnp.issubdtype(values.dtype, jnp.floating):
            return values
        return clip_pixels(values.astype(jnp.float32) / 255, self.encoder.image_size)

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Images:
        side = self.encoder.image_size
        return jnp.zeros((batch, side, side, 3))

    @nn.nowrap
    def read(self, value: object, name: str = "image") -> np.ndarray:
        """One image or several of one size."""
        if isinstance(value, list | tuple):
            return stack([np.asarray(image) for image in value], name)
        return np.asarray(value)

    @nn.nowrap
    def check(self, values: object, name: str = "image") -> None:
        """Raise `UserError` unless these are RGB images as bytes."""
        array = np.asarray(values)
        got = f"{array.dtype}{list(array.shape)}"
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape[1:]:
            raise UserError(
                f"{name}={got}: expected images uint8 [n, height, width, 3], got {got}. Fix: give such images"
            )

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        """The image of a file."""
        return [read_image(name, text, 3)]

    @nn.nowrap
    def from_json(self, value: Any, name: str, folder: pathlib.Path) -> Any:
        """The image of a file, relative to `folder`."""
        return None if value is None else self.parse(path_in(folder, value, name), name)[0]
