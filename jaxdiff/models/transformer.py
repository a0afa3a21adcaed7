"""Transformer over the pixels of a small image: the middle of a U-ViT ("simple diffusion", Hoogeboom et al. 2023).

Checkpoints hold the projections under the names "enter" (proj_in) and "leave" (proj_out), and the position embedding
under "places".
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.embeddings import Tokens
from jaxdiff.errors import between, expect, positive
from jaxdiff.models.attention import attend
from jaxdiff.models.interface import BlockInputs
from jaxdiff.models.layers import Conv, Dense, FromHeads, LayerNorm, ToHeads
from jaxdiff.typing import Array, Features, Float, Images


@dataclasses.dataclass(frozen=True)
class TransformerMiddle:
    """U-ViT's middle: most parameters sit where the image is small (Hoogeboom et al. 2023, section 3.4).

    Attributes:
      width: channels inside; 1 x 1 convolutions project in and out.
      blocks: number of transformer blocks.
      head_dim: channels of an attention head.
      expansion: hidden width of the MLPs, as a multiple of `width`.
      cross_attention: pixels attend to the tokens in every block.
      dropout: dropout rate in the MLPs.
    """

    width: int
    blocks: int
    head_dim: int = 64
    expansion: int = 4
    cross_attention: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        positive(self, "width", "blocks", "head_dim", "expansion")
        expect(
            self.width % self.head_dim == 0,
            "width",
            self.width,
            f"a multiple of head_dim={self.head_dim}",
            "use a multiple",
        )
        between(self, "dropout", 0.0, 1.0, open_high=True)

    @property
    def reads_tokens(self) -> bool:
        return self.cross_attention

    def check(self, width: int, field: str) -> None:
        """Projections lead from any width to this part's own."""

    def __call__(self, h: Images, inputs: BlockInputs) -> Features:
        return Transformer(self, inputs.dtype, inputs.remat, inputs.train, name="middle")(
            h, inputs.vector, inputs.tokens
        )


class Transformer(nn.Module):
    """Pixels as a sequence through the blocks of a `TransformerMiddle`; starts as the identity.

    The position embedding is learned, one vector for each pixel: the network is bound to one size of image.
    """

    part: TransformerMiddle
    dtype: str = "float32"
    remat: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, x: Images, vector: Float[Array, "batch embed"], tokens: Tokens | None) -> Images:
        """Transform features `x`; the norms adapt to `vector`, which has passed its SiLU."""
        part, (batch, height, width, channels) = self.part, x.shape
        h = Conv(part.width, size=1, dtype=self.dtype, name="enter")(x)
        h = h.reshape(batch, height * width, part.width)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "channels_out"))
        h = h + self.param("places", init, (height * width, part.width)).astype(h.dtype)[None]
        cls = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        for i in range(part.blocks):
            h = cls(
                part.head_dim,
                part.expansion,
                part.cross_attention,
                part.dropout if self.train else 0.0,
                self.dtype,
                name=f"block_{i}",
            )(h, vector, tokens)
        h = LayerNorm(name="norm")(h).reshape(batch, height, width, part.width)
        return x + Conv(channels, size=1, zero=True, dtype=self.dtype, name="leave")(h)


class TransformerBlock(nn.Module):
    """Self-attention, optional cross-attention and an MLP, each added to its input; starts as its skip.

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
