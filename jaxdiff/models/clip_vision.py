"""CLIP's image encoder: a vision transformer over the patches of an image (Radford et al. 2021).

IP-Adapter reads its vector (Ye et al. 2023). `jaxdiff.interop.clip_vision` fills it with published weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import between, expect, one_of, positive
from jaxdiff.models.clip_text import ACTIVATIONS, ClipBlock
from jaxdiff.models.layers import Dense, LayerNorm, check_dtype, embedding_init
from jaxdiff.models.resampling import to_patches
from jaxdiff.typing import Array, Features, Float, Images

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the red, green and blue values in [0, 1] of CLIP's training images."""


class ClipVisionEncoder(nn.Module):
    """CLIP's vision transformer: patches and a class token, pre-norm blocks between two norms, a projection.

    | model | width | layers | heads | patch | activation | projection |
    |---|---|---|---|---|---|---|
    | CLIP ViT-L/14 | 1024 | 24 | 16 | 14 | quick_gelu | 768 |
    | OpenCLIP ViT-H/14 (IP-Adapter) | 1280 | 32 | 16 | 14 | gelu | 1024 |
    | OpenCLIP ViT-bigG/14 (IP-Adapter for SDXL) | 1664 | 48 | 16 | 14 | gelu | 1280 |

    Attributes:
      width: channels of the encoder and of its tokens.
      layers: number of blocks.
      heads: number of attention heads.
      hidden: hidden width of the MLPs; four times `width` if None.
      activation: of the MLPs, a key of `jaxdiff.models.clip_text.ACTIVATIONS`.
      image_size: side of the square images that the position embedding is for.
      patch: side of a patch.
      projection: width of the vector, by a matrix without bias.
      layer: the states that are returned as tokens. -1 is the last block's output, -2 that of the block before.
      eps: of the norms.
      dtype: of attention and MLPs. Their sum, norms and parameters are float32.
    """

    width: int
    layers: int
    heads: int
    hidden: int | None = None
    activation: str = "quick_gelu"
    image_size: int = 224
    patch: int = 14
    projection: int = 768
    layer: int = -1
    eps: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "width", "layers", "heads", "hidden", "image_size", "patch", "projection", "eps")
        fix = "change one of them"
        expect(self.width % self.heads == 0, "width", self.width, f"a multiple of heads={self.heads}", fix)
        expect(
            self.image_size % self.patch == 0,
            "image_size",
            self.image_size,
            f"a multiple of patch={self.patch}",
            fix,
        )
        one_of(self, "activation", ACTIVATIONS)
        between(self, "layer", -self.layers - 1, -1)
        check_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, pixels: Images) -> Embeddings:
        """The projected class token as the vector, and the states of `layer` without a norm as tokens.

        Args:
          pixels: images of `image_size`, normalised as by `clip_pixels`.

        Raises:
          UserError: the images have another size.
        """
        size, side = pixels.shape[1:3], self.image_size
        expect(size == (side, side), "pixels", size, f"images of {side} x {side}", "use clip_pixels")
        states = [self._embedded(pixels)]
        for i in range(self.layers):
            block = ClipBlock(
                self.heads, self.hidden, self.activation, self.eps, self.dtype, False, name=f"block_{i}"
            )
            states.append(block(states[-1]))
        pooled = LayerNorm(self.eps, name="norm")(states[-1][:, :1])[:, 0]
        vector = Dense(self.projection, bias=False, dtype=self.dtype, name="projection")(pooled)
        chosen = states[self.layer]
        return Embeddings(vector=vector, tokens=Tokens(chosen, jnp.ones(chosen.shape[:2], bool)))

    @nn.nowrap
    def _embedded(self, pixels: Images) -> Float[Array, "batch tokens embed"]:
        """The class token and the patches, row by row, with their positions."""
        patches = to_patches(pixels, self.patch)
        patches = Dense(self.width, bias=False, dtype=self.dtype, name="patch_embedding")(patches)
        patches = patches.reshape(patches.shape[0], -1, self.width).astype(jnp.float32)
        begin = self.param("class_embedding", embedding_init(self.width**-0.5), (1, self.width))
        begin = jnp.broadcast_to(begin[None], (patches.shape[0], 1, self.width))
        places = self.param("position_embedding", embedding_init(0.02), (1 + patches.shape[1], self.width))
        x = jnp.concatenate([begin, patches], axis=1) + places[None]
        return LayerNorm(self.eps, name="norm_embedded")(x)


def clip_pixels(images: Images, size: int = 224) -> Features:
    """Images with values in [0, 1] as CLIP reads them.

    The shorter side is resized to `size` (bicubic, low-passed, in 256 levels), the centre is cut out, and the values
    are normalised by the mean and the standard deviation of CLIP's training images.
    """
    batch, height, width, channels = images.shape
    short = min(height, width)
    rows, columns = size * height // short, size * width // short
    levels = 255 * images
    # Rounded and clipped after the columns and again after the rows, as libraries do that resize bytes.
    for shape in ((height, columns), (rows, columns)):
        resized = jax.image.resize(levels, (batch, *shape, channels), "bicubic")
        levels = jnp.round(jnp.clip(resized, 0, 255))
    top, left = (rows - size) // 2, (columns - size) // 2
    return clip_normalised(levels[:, top : top + size, left : left + size] / 255)


def clip_normalised(images: Images) -> Images:
    """Images with values in [0, 1], by the mean and the standard deviation of CLIP's training images."""
    mean, std = (np.array(values, np.float32)[None, None, None] for values in (MEAN, STD))
    return (images - mean) / std
