"""Spatial transformer: transformer blocks over pixels that attend to tokens (latent diffusion, Rombach et al. 2022)."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from jaxdiff.embeddings import ImagePrompt, Tokens
from jaxdiff.errors import between, expect, positive
from jaxdiff.models.attention import attend, check_heads, check_width, head_count
from jaxdiff.models.interface import BlockInputs
from jaxdiff.models.layers import Conv, Dense, FromHeads, GroupNorm, LayerNorm, ToHeads
from jaxdiff.typing import Array, Features, Float, Images


@dataclasses.dataclass(frozen=True)
class SpatialTransformer:
    """Attention of a Stable Diffusion level: ``x + proj_out(blocks(proj_in(norm(x))))``.

    `depth` is 1 in SD 1 and 2, and differs from level to level in SDXL. `proj_out` starts at zero, so the part starts
    as the identity.

    Attributes:
      depth: number of transformer blocks.
      heads: number of attention heads (8 in SD 1); None with `head_dim`.
      head_dim: channels of an attention head (64 in SD 2 and SDXL); None with `heads`.
      cross_attention: each block attends to the tokens, between its self-attention and its MLP.
      only_cross_attention: each block attends to the tokens twice and never to itself (the x4 upscaler of Stable
        Diffusion 2; `disable_self_attentions` in latent diffusion's code).
      expansion: hidden width of the MLPs, as a multiple of the channels.
      linear_projection: `proj_in` and `proj_out` store matrices (SD 2, SDXL) rather than 1 x 1 convolutions (SD 1). The
        function is the same.
      groups, eps: options of the group norm before `proj_in`; independent of those of the residual blocks.
      dropout: dropout rate after attention and in the MLPs.
    """

    depth: int = 1
    heads: int | None = None
    head_dim: int | None = 64
    cross_attention: bool = True
    expansion: int = 4
    linear_projection: bool = False
    groups: int = 32
    eps: float = 1e-6
    dropout: float = 0.0
    only_cross_attention: bool = False

    def __post_init__(self):
        positive(self, "depth", "expansion", "groups", "eps")
        between(self, "dropout", 0.0, 1.0, open_high=True)
        expect(
            self.cross_attention or not self.only_cross_attention,
            "only_cross_attention",
            self.only_cross_attention,
            "False, with cross_attention=False",
            "set one of them the other way",
        )
        check_heads(self)

    @property
    def reads_tokens(self) -> bool:
        return self.cross_attention

    @property
    def reads_image_prompts(self) -> bool:
        return self.cross_attention

    def check(self, width: int, field: str) -> None:
        check_width(self, width, field)

    def __call__(self, h: Images, inputs: BlockInputs) -> Features:
        return SpatialTransformerStack(self, inputs.dtype, inputs.remat, inputs.train, name="transformer")(
            h, inputs.tokens, inputs.image_prompts or {}
        )


class SpatialTransformerStack(nn.Module):
    """The module of a `SpatialTransformer`."""

    part: SpatialTransformer
    dtype: str = "float32"
    remat: bool = False
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Images, tokens: Tokens | None, image_prompts: Mapping[str, ImagePrompt] = FrozenDict()
    ) -> Images:
        part, (batch, height, width, channels) = self.part, x.shape
        h = GroupNorm(part.groups, 1, silu=False, eps=part.eps, name="norm")(x)
        h = self._project(channels, "proj_in", zero=False)(h).reshape(batch, height * width, channels)
        cls = nn.remat(GegluBlock) if self.remat else GegluBlock
        for i in range(part.depth):
            h = cls(
                head_count(channels, part.heads, part.head_dim),
                part.expansion,
                part.cross_attention,
                part.dropout if self.train else 0.0,
                self.dtype,
                part.only_cross_attention,
                name=f"block_{i}",
            )(h, tokens, image_prompts)
        return x + self._project(channels, "proj_out", zero=True)(h.reshape(x.shape))

    @nn.nowrap
    def _project(self, channels: int, name: str, zero: bool) -> nn.Module:
        if self.part.linear_projection:
            return Dense(channels, zero=zero, dtype=self.dtype, name=name)
        return Conv(channels, size=1, zero=zero, dtype=self.dtype, name=name)


class GegluBlock(nn.Module):
    """Transformer block of latent diffusion: self-attention, cross-attention and an MLP, each added to its input.

    With `only_cross_attention`, the first attention reads the tokens as well.

    Pre-norm. Queries, keys and values have no bias. The MLP is ``contract(a * gelu(b))`` where a and b are the two
    halves of one layer's outputs (GEGLU, Shazeer 2020), with the exact GELU.

    Each image prompt has keys and values of its own. The pixels attend to it with the query of the cross-attention, and
    the result times its scale is added before the output layer (IP-Adapter, Ye et al. 2023, equation 5).
    """

    heads: int
    expansion: int = 4
    cross_attention: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    only_cross_attention: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        tokens: Tokens | None,
        image_prompts: Mapping[str, ImagePrompt] = FrozenDict(),
    ) -> Float[Array, "batch length channels"]:
        channels = x.shape[-1]
        split = {"heads": self.heads, "head_dim": channels // self.heads, "dtype": self.dtype, "bias": False}
        h = LayerNorm(name="norm_0")(x)
        if self.only_cross_attention:
            assert tokens is not None  # `UNet` has seen that they are there
            (query,) = ToHeads(1, name="attention_query", **split)(h)
            key, value = ToHeads(2, name="attention_key_value", **split)(tokens.features)
            h = attend(query, key, value, tokens.mask)
        else:
            h = attend(*ToHeads(3, name="query_key_value", **split)(h))
        x = x + self._dropped(FromHeads(channels, zero=False, dtype=self.dtype, name="attention_out")(h), 0)
        if self.cross_attention and tokens is not None:
            (query,) = ToHeads(1, name="query", **split)(LayerNorm(name="norm_tokens")(x))
            key, value = ToHeads(2, name="key_value", **split)(tokens.features)
            h = attend(query, key, value, tokens.mask)
            for name, prompt in image_prompts.items():
                key, value = ToHeads(2, name=f"key_value_{name}", **split)(prompt.features)
                h = h + prompt.scale[:, None, None, None].astype(h.dtype) * attend(query, key, value)
            x = x + self._dropped(FromHeads(channels, zero=False, dtype=self.dtype, name="cross_out")(h), 1)
        h = Dense(2 * self.expansion * channels, dtype=self.dtype, name="expand")(LayerNorm(name="norm_1")(x))
        values, gates = jnp.split(h, 2, axis=-1)
        h = self._dropped(values * jax.nn.gelu(gates, approximate=False), 2)
        return x + Dense(channels, dtype=self.dtype, name="contract")(h)

    @nn.nowrap
    def _dropped(self, h: Float[Array, "..."], index: int) -> Float[Array, "..."]:
        if not self.dropout:
            return h
        return nn.Dropout(self.dropout, deterministic=False, name=f"dropout_{index}")(h)
