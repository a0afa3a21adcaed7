"""DINOv2: a vision transformer over the patches of an image (Oquab et al. 2023; registers: Darcet et al. 2024).

Its class token is the feature space of FD-DINOv2 (Stein et al. 2023). `jaxdiff.interop.dinov2` fills it with published
weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import between, expect, positive
from jaxdiff.models.interpolation import antialiased_bicubic, bicubic, interpolate
from jaxdiff.models.layers import Dense, FromHeads, LayerNorm, ToHeads, check_dtype, embedding_init
from jaxdiff.models.resampling import to_patches
from jaxdiff.typing import Array, Float, Images


class Dinov2(nn.Module):
    """DINOv2's vision transformer: a class token, registers and patches, pre-norm blocks with scaled branches, a norm.

    | model | width | layers | heads | registers |
    |---|---|---|---|---|
    | ViT-S/14 | 384 | 12 | 6 | 0 or 4 |
    | ViT-B/14 | 768 | 12 | 12 | 0 or 4 |
    | ViT-L/14 | 1024 | 24 | 16 | 0 or 4 |

    Images of any multiple of `patch` are read: positions are interpolated. The models with registers do so with a
    low-pass, those without as the original code does, which adds `offset` to the new size.

    Attributes:
      width: channels of the tokens.
      layers: number of blocks.
      heads: number of attention heads.
      hidden: hidden width of the MLPs; four times `width` if None.
      registers: number of tokens that stand for no patch.
      image_size: side of the images that the position embedding is for.
      patch: side of a patch.
      offset: see above; 0.1 in the original code, and 0 in transformers.
      eps: of the norms.
      dtype: of attention and MLPs. Their sum, norms and parameters are float32.
    """

    width: int
    layers: int
    heads: int
    hidden: int | None = None
    registers: int = 0
    image_size: int = 518
    patch: int = 14
    offset: float = 0.1
    eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "width", "layers", "heads", "hidden", "image_size", "patch", "eps")
        between(self, "registers", 0, float("inf"))
        between(self, "offset", 0, 1, open_high=True)
        fix = "change one of them"
        expect(self.width % self.heads == 0, "width", self.width, f"a multiple of heads={self.heads}", fix)
        whole = self.image_size % self.patch == 0
        expect(whole, "image_size", self.image_size, f"a multiple of patch={self.patch}", fix)
        check_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, pixels: Images) -> Embeddings:
        """The class token as the vector; the tokens of the patches, row by row. Both are behind the last norm.

        Args:
          pixels: images normalised by the mean and the standard deviation of ImageNet's channels.

        Raises:
          UserError: the images are not of whole patches.
        """
        height, width = pixels.shape[1:3]
        whole = height % self.patch == width % self.patch == 0
        expect(whole, "pixels", (height, width), f"multiples of patch={self.patch}", "resize the images")
        x = self._embedded(pixels)
        for i in range(self.layers):
            block = Dinov2Block(self.heads, self.hidden, self.eps, self.dtype, name=f"block_{i}")
            x = block(x)
        x = LayerNorm(self.eps, name="norm")(x)
        patches = x[:, 1 + self.registers :]
        return Embeddings(vector=x[:, 0], tokens=Tokens(patches, jnp.ones(patches.shape[:2], bool)))

    @nn.nowrap
    def _embedded(self, pixels: Images) -> Float[Array, "batch tokens embed"]:
        patches = to_patches(pixels, self.patch)
        patches = Dense(self.width, dtype=self.dtype, name="patch_embedding")(patches)
        batch, rows, columns, _ = patches.shape
        first, places = self._positions(rows, columns)
        patches = patches.reshape(batch, -1, self.width).astype(jnp.float32) + places[None]
        own = [self.param("class_embedding", embedding_init(0.02), (1, self.width)) + first]
        if self.registers:
            own.append(self.param("register_embedding", embedding_init(0.02), (self.registers, self.width)))
        own = [jnp.broadcast_to(each[None], (batch, *each.shape)) for each in own]
        return jnp.concatenate([*own, patches], axis=1)

    @nn.nowrap
    def _positions(
        self, rows: int, columns: int
    ) -> tuple[Float[Array, "1 embed"], Float[Array, "patches embed"]]:
        """The positions of the class token and of the patches."""
        side = self.image_size // self.patch
        table = self.param("position_embedding", embedding_init(0.02), (1 + side * side, self.width))
        first, places = table[:1], table[1:]
        if (rows, columns) != (side, side):
            grid = places.reshape(1, side, side, self.width)
            matrices = (self._matrix(side, rows), self._matrix(side, columns))
            places = interpolate(grid, *matrices).reshape(-1, self.width)
        return first, places

    @nn.nowrap
    def _matrix(self, old: int, new: int):
        if self.registers:
            return antialiased_bicubic(old, new)
        return bicubic(old, new, (new + self.offset) / old)


class Dinov2Block(nn.Module):
    """Pre-norm transformer block, each branch times a learned scale (Touvron et al. 2021, "LayerScale")."""

    heads: int
    hidden: int | None = None
    eps: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "batch length channels"]) -> Float[Array, "batch length channels"]:
        channels = x.shape[-1]
        h = LayerNorm(self.eps, name="norm_0")(x)
        h = ToHeads(3, self.heads, channels // self.heads, self.dtype, name="query_key_value")(h)
        h = jax.nn.dot_product_attention(*h, implementation="xla")
        x = x + self._scale(0, channels) * FromHeads(channels, self.dtype, zero=False, name="attention_out")(
            h
        )
        h = LayerNorm(self.eps, name="norm_1")(x)
        h = Dense(self.hidden or 4 * channels, dtype=self.dtype, name="expand")(h)
        h = Dense(channels, dtype=self.dtype, name="contract")(jax.nn.gelu(h, approximate=False))
        return x + self._scale(1, channels) * h

    @nn.nowrap
    def _scale(self, branch: int, channels: int) -> Float[Array, "1 1 channels"]:
        scale = self.param(f"scale_{branch}", nn.initializers.ones, (channels,))
        return scale[None, None]
