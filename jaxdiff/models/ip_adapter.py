"""IP-Adapter's projections: from the outputs of an image encoder to tokens for cross-attention (Ye et al. 2023)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, positive
from jaxdiff.models.attention import attend
from jaxdiff.models.layers import Dense, FromHeads, LayerNorm, ToHeads
from jaxdiff.typing import Array, Float

HEAD_DIM = 64
"""Channels of an attention head in every published `Resampler`."""


class ImageProjection(nn.Module):
    """The image's vector by one layer to a few tokens, which are normalised.

    Attributes:
      width: channels of the tokens, as many as those of the text.
      tokens: number of tokens.
    """

    width: int
    tokens: int = 4

    def __post_init__(self):
        positive(self, "width", "tokens")
        super().__post_init__()

    @nn.compact
    def __call__(self, encoded: Embeddings) -> Float[Array, "batch tokens width"]:
        vector = encoded.vector
        if vector is None:
            raise UserError(
                "projection: expected an encoder that gives a vector, got none. Fix: use ClipVisionEncoder"
            )
        h = Dense(self.tokens * self.width, name="project")(vector)
        return LayerNorm(name="norm")(h.reshape(-1, self.tokens, self.width))


class Resampler(nn.Module):
    """Learned queries that attend to the image's tokens, block by block (IP-Adapter plus; Alayrac et al. 2022).

    The image's tokens are the states of the block before the last, `ClipVisionEncoder.layer` -2.

    Attributes:
      width: channels of the tokens, as many as those of the text.
      tokens: number of queries, and of tokens.
      hidden: channels within the blocks.
      blocks: number of blocks.
      heads: number of attention heads, of `head_dim` channels.
      expansion: hidden width of the MLPs, as a multiple of `hidden`.
    """

    width: int
    tokens: int = 16
    hidden: int = 768
    blocks: int = 4
    heads: int = 12
    head_dim: int = HEAD_DIM
    expansion: int = 4

    def __post_init__(self):
        positive(self, "width", "tokens", "hidden", "blocks", "heads", "head_dim", "expansion")
        super().__post_init__()

    @nn.compact
    def __call__(self, encoded: Embeddings) -> Float[Array, "batch tokens width"]:
        tokens = encoded.tokens
        if tokens is None:
            raise UserError(
                "projection: expected an encoder that gives tokens, got none. Fix: use ClipVisionEncoder"
            )
        x = Dense(self.hidden, name="proj_in")(tokens.features)
        init = nn.initializers.normal(self.hidden**-0.5)
        latents = self.param("latents", init, (self.tokens, self.hidden))
        latents = jnp.broadcast_to(latents[None], (x.shape[0], *latents.shape))
        for i in range(self.blocks):
            latents = ResamplerBlock(self.heads, self.head_dim, self.expansion, name=f"block_{i}")(x, latents)
        return LayerNorm(name="norm")(Dense(self.width, name="proj_out")(latents))


class ResamplerBlock(nn.Module):
    """The queries attend to the image's tokens and to themselves; then an MLP. Each is added to its input."""

    heads: int
    head_dim: int = HEAD_DIM
    expansion: int = 4

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length channels"], latents: Float[Array, "batch tokens channels"]
    ) -> Float[Array, "batch tokens channels"]:
        channels = latents.shape[-1]
        split = {"heads": self.heads, "head_dim": self.head_dim, "bias": False}
        h = LayerNorm(name="norm_latents")(latents)
        read = jnp.concatenate([LayerNorm(name="norm_image")(x), h], axis=1)
        (query,) = ToHeads(1, name="query", **split)(h)
        key, value = ToHeads(2, name="key_value", **split)(read)
        out = FromHeads(channels, zero=False, bias=False, name="attention_out")
        latents = latents + out(attend(query, key, value))
        h = Dense(self.expansion * channels, bias=False, name="expand")(LayerNorm(name="norm_mlp")(latents))
        h = jax.nn.gelu(h, approximate=False)
        return latents + Dense(channels, bias=False, name="contract")(h)
