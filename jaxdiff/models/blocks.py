"""The blocks of a U-Net: residual with adaptive group norm, and attention."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.embeddings import Tokens
from jaxdiff.models.attention import attend
from jaxdiff.models.layers import Conv, Dense, FromHeads, GroupNorm, ToHeads
from jaxdiff.typing import Array, Features, Float, Images

Resample = Literal["none", "down", "up"]


class Block(nn.Module):
    """A residual block, then self-attention, then cross-attention: the two are independent options."""

    width: int
    self_attention: bool
    cross_attention: bool
    dropout: float
    head_dim: int
    groups: int
    min_group_size: int
    dtype: str
    resample: Resample = "none"

    @nn.compact
    def __call__(self, x: Images, vector: Float[Array, "batch embed"], tokens: Tokens | None) -> Features:
        norms = {"groups": self.groups, "min_group_size": self.min_group_size, "dtype": self.dtype}
        x = ResidualBlock(self.width, self.dropout, self.resample, name="residual", **norms)(x, vector)
        if self.self_attention:
            x = AttentionBlock(self.head_dim, name="self_attention", **norms)(x)
        if self.cross_attention:
            x = AttentionBlock(self.head_dim, name="cross_attention", **norms)(x, tokens)
        return x


class ResidualBlock(nn.Module):
    """ADM's residual block (Dhariwal & Nichol 2021, section 3; BigGAN's before it).

    ``x + conv(dropout(silu((1 + scale) norm(conv(silu(norm(x)))) + shift)))``, scale and shift linear in the
    vector. The last convolution starts at zero, so that the block starts as its skip. With `resample`, both
    branches are resampled before the first convolution, by means of 2 x 2 pixels or by repeating them.

    Attributes:
      dropout: its rate; 0 outside training.
    """

    width: int
    dropout: float
    resample: Resample = "none"
    groups: int = 32
    min_group_size: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images, vector: Float[Array, "batch embed"]) -> Features:
        h = GroupNorm(self.groups, self.min_group_size, name="norm_0")(x)
        x, h = resample(x, self.resample), resample(h, self.resample)
        h = Conv(self.width, dtype=self.dtype, name="conv_0")(h)
        # Float32: these are numbers per image, not per pixel, and they multiply everything.
        scale, shift = jnp.split(Dense(2 * self.width, name="modulation")(vector), 2, axis=-1)
        h = GroupNorm(self.groups, self.min_group_size, name="norm_1")(h, scale, shift)
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False, name="dropout")(h)
        h = Conv(self.width, zero=True, dtype=self.dtype, name="conv_1")(h)
        if x.shape[-1] != self.width:
            x = Conv(self.width, size=1, dtype=self.dtype, name="skip")(x)
        return x + h


class AttentionBlock(nn.Module):
    """``x + project(attention(norm(x)))`` over pixels, or over tokens if given. Starts as the identity."""

    head_dim: int
    groups: int = 32
    min_group_size: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images, tokens: Tokens | None = None) -> Images:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, self.min_group_size, silu=False, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        heads = {"heads": channels // self.head_dim, "head_dim": self.head_dim, "dtype": self.dtype}
        if tokens is None:
            query, key, value = ToHeads(3, name="query_key_value", **heads)(h)
            h = attend(query, key, value)
        else:
            (query,) = ToHeads(1, name="query", **heads)(h)
            key, value = ToHeads(2, name="key_value", **heads)(tokens.features)
            h = attend(query, key, value, tokens.mask)
        return x + FromHeads(channels, dtype=self.dtype, name="out")(h).reshape(x.shape)


class Downsample(nn.Module):
    """Halve the size by a 3 x 3 convolution of stride 2 (Ho et al. 2020)."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Features:
        return Conv(self.width, stride=2, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double the size by repeating pixels, then a 3 x 3 convolution (Ho et al. 2020)."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Features:
        return Conv(self.width, dtype=self.dtype, name="conv")(resample(x, "up"))


def resample(x: Images, how: Resample) -> Features:
    """Means of 2 x 2 pixels ("down"), every pixel repeated 2 x 2 ("up"), or `x` itself."""
    batch, height, width, channels = x.shape
    if how == "down":
        return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))
    if how == "up":
        x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        return x.reshape(batch, 2 * height, 2 * width, channels)
    return x
