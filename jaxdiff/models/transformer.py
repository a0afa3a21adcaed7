"""Transformer blocks over the pixels of a small image: the middle of a U-ViT."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.embeddings import Tokens
from jaxdiff.errors import require
from jaxdiff.models.attention import attend
from jaxdiff.models.layers import Conv, Dense, FromHeads, LayerNorm, ToHeads
from jaxdiff.typing import Array, Float, Images


@dataclasses.dataclass(frozen=True)
class TransformerLevel:
    """The middle of "simple diffusion": most parameters, where the image is small (Hoogeboom et al. 2023, section 3.4).

    Attributes:
      width: channels inside; 1 x 1 convolutions lead in and out.
      blocks: how many.
      head_dim: channels of an attention head.
      expansion: hidden width of the MLPs, as a multiple of `width`.
      cross_attention: whether pixels attend to the tokens, in every block.
      dropout: rate in the MLPs.
    """

    width: int
    blocks: int
    head_dim: int = 64
    expansion: int = 4
    cross_attention: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("width", "blocks", "head_dim", "expansion"):
            require(
                getattr(self, name) > 0, name, getattr(self, name), "it must be positive", "give at least 1"
            )
        require(self.width % self.head_dim == 0, "width", self.width,
                f"attention splits it into heads of head_dim={self.head_dim}", "use a multiple")  # fmt: skip
        require(0 <= self.dropout < 1, "dropout", self.dropout, "it is outside [0, 1)", "try 0.1")


class Transformer(nn.Module):
    """Pixels as a sequence through the blocks of a `TransformerLevel`; starts as the identity.

    Where a pixel is, is told by a learned embedding. So it fits one size of image.
    """

    level: TransformerLevel
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Images, vector: Float[Array, "batch embed"], tokens: Tokens | None, *, train: bool
    ) -> Images:
        """`vector` is what the norms adapt to, after its SiLU."""
        batch, height, width, channels = x.shape
        inside = self.level.width
        h = Conv(inside, size=1, dtype=self.dtype, name="enter")(x).reshape(batch, height * width, inside)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "channels_out"))
        h = h + self.param("places", init, (height * width, inside)).astype(h.dtype)[None]
        cls = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        for i in range(self.level.blocks):
            dropout = self.level.dropout if train else 0.0
            options = (
                self.level.head_dim,
                self.level.expansion,
                self.level.cross_attention,
                dropout,
                self.dtype,
            )
            h = cls(*options, name=f"block_{i}")(h, vector, tokens)
        h = LayerNorm(name="norm")(h).reshape(batch, height, width, inside)
        return x + Conv(channels, size=1, zero=True, dtype=self.dtype, name="leave")(h)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention if asked for, and an MLP, each added to what it is given; starts as its skip.

    Pre-norm (Xiong et al. 2020); the norms before self-attention and the MLP are scaled and shifted by the vector
    (adaLN, Peebles & Xie 2023). The MLP has the exact GELU.
    """

    head_dim: int
    expansion: int = 4
    cross_attention: bool = False
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        vector: Float[Array, "batch embed"],
        tokens: Tokens | None,
    ) -> Float[Array, "batch length channels"]:
        channels = x.shape[-1]
        heads = {"heads": channels // self.head_dim, "head_dim": self.head_dim, "dtype": self.dtype}
        modulation = Dense(4 * channels, name="modulation")(vector)
        scale_0, shift_0, scale_1, shift_1 = jnp.split(modulation, 4, axis=-1)

        h = LayerNorm(name="norm_0")(x, scale_0, shift_0)
        h = attend(*ToHeads(3, name="query_key_value", **heads)(h))
        x = x + FromHeads(channels, dtype=self.dtype, name="attention_out")(h)
        if self.cross_attention and tokens is not None:
            (query,) = ToHeads(1, name="query", **heads)(LayerNorm(name="norm_tokens")(x))
            key, value = ToHeads(2, name="key_value", **heads)(tokens.features)
            h = attend(query, key, value, tokens.mask)
            x = x + FromHeads(channels, dtype=self.dtype, name="cross_out")(h)
        h = LayerNorm(name="norm_1")(x, scale_1, shift_1)
        h = Dense(self.expansion * channels, dtype=self.dtype, name="expand")(h)
        h = jax.nn.gelu(h, approximate=False)
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False, name="dropout")(h)
        return x + Dense(channels, zero=True, dtype=self.dtype, name="contract")(h)
