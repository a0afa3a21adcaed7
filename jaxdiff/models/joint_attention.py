"""Joint attention: pixels attend to each other and to tokens in one softmax (GLIDE, unCLIP)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.embeddings import Tokens
from jaxdiff.models.attention import attend, check_heads, check_width, head_count
from jaxdiff.models.interface import BlockInputs, BlockOptions
from jaxdiff.models.layers import FromHeads, ToHeads, scaled
from jaxdiff.typing import Features, Images


@dataclasses.dataclass(frozen=True)
class JointAttention:
    """Joint attention after a residual block (Nichol et al. 2021, "GLIDE", section 4.1; Ramesh et al. 2022).

    Attributes:
      head_dim: channels of an attention head; None with `heads`.
      heads: number of attention heads; None with `head_dim`.
    """

    head_dim: int | None = 64
    heads: int | None = None

    def __post_init__(self):
        check_heads(self)

    @property
    def reads_tokens(self) -> bool:
        return True

    def check(self, width: int, field: str) -> None:
        check_width(self, width, field)

    def __call__(self, h: Images, inputs: BlockInputs) -> Features:
        assert inputs.tokens is not None  # `UNet` has seen that they are there
        heads = head_count(h.shape[-1], self.heads, self.head_dim)
        return JointAttentionBlock(heads, inputs.options, inputs.dtype, name="joint_attention")(
            h, inputs.tokens
        )


class JointAttentionBlock(nn.Module):
    """``skip_scale (x + project(attention(norm(x), tokens)))``; starts as its skip. Tokens are not normalised."""

    heads: int = 1
    options: BlockOptions = BlockOptions()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images, tokens: Tokens) -> Images:
        batch, height, width, channels = x.shape
        h = self.options.norm("norm", silu=False)(x).reshape(batch, height * width, channels)
        split = {"heads": self.heads, "head_dim": channels // self.heads, "dtype": self.dtype}
        query, key, value = ToHeads(3, name="query_key_value", **split)(h)
        both = zip(ToHeads(2, name="key_value", **split)(tokens.features), (key, value), strict=True)
        key, value = (jnp.concatenate(pair, axis=1) for pair in both)
        mask = jnp.pad(tokens.mask, ((0, 0), (0, height * width)), constant_values=True)
        h = attend(query, key, value, mask)
        h = FromHeads(channels, dtype=self.dtype, name="out")(h).reshape(x.shape)
        return scaled(x + h, self.options.skip_scale)
