"""Pixel attention after a residual block: self-attention, cross-attention to tokens, or both (DDPM, ADM, Imagen)."""

import dataclasses

import flax.linen as nn

from jaxdiff.embeddings import Tokens
from jaxdiff.errors import expect
from jaxdiff.models.attention import attend, check_heads, check_width, head_count
from jaxdiff.models.interface import BlockInputs, BlockOptions
from jaxdiff.models.layers import FromHeads, ToHeads, scaled
from jaxdiff.typing import Features, Images


@dataclasses.dataclass(frozen=True)
class PixelAttention:
    """Self-attention, then cross-attention; the two are independent options.

    Attributes:
      self_attention: pixels attend to each other.
      cross_attention: pixels attend to the tokens.
      head_dim: channels of an attention head; None with `heads`.
      heads: number of attention heads; None with `head_dim`.
    """

    self_attention: bool = True
    cross_attention: bool = False
    head_dim: int | None = 32
    heads: int | None = None

    def __post_init__(self):
        check_heads(self)
        expect(
            self.self_attention or self.cross_attention,
            "self_attention",
            self.self_attention,
            "self-attention or cross-attention",
            "set one of them, or use attention=None",
        )

    @property
    def reads_tokens(self) -> bool:
        return self.cross_attention

    def check(self, width: int, field: str) -> None:
        check_width(self, width, field)

    def __call__(self, h: Images, inputs: BlockInputs) -> Features:
        block = (head_count(h.shape[-1], self.heads, self.head_dim), inputs.options, inputs.dtype)
        if self.self_attention:
            h = AttentionBlock(*block, name="self_attention")(h)
        if self.cross_attention:
            h = AttentionBlock(*block, name="cross_attention")(h, inputs.tokens)
        return h


class AttentionBlock(nn.Module):
    """``skip_scale (x + project(attention(norm(x))))`` over pixels, or over tokens if given; starts as its skip."""

    heads: int = 1
    options: BlockOptions = BlockOptions()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images, tokens: Tokens | None = None) -> Images:
        batch, height, width, channels = x.shape
        options = self.options
        h = options.norm("norm", silu=False)(x).reshape(batch, height * width, channels)
        split = {"heads": self.heads, "head_dim": channels // self.heads, "dtype": self.dtype}
        if tokens is None:
            query, key, value = ToHeads(3, name="query_key_value", **split)(h)
            h = attend(query, key, value)
        else:
            (query,) = ToHeads(1, name="query", **split)(h)
            key, value = ToHeads(2, name="key_value", **split)(tokens.features)
            h = attend(query, key, value, tokens.mask)
        h = FromHeads(channels, dtype=self.dtype, name="out")(h).reshape(x.shape)
        return scaled(x + h, options.skip_scale)
