"""The blocks of a U-Net: residual blocks that adapt to a vector, attention, and changes of size."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.embeddings import Tokens
from jaxdiff.errors import require
from jaxdiff.models.attention import attend
from jaxdiff.models.layers import Conv, Dense, FromHeads, GroupNorm, ToHeads, check_dtype
from jaxdiff.models.resampling import Resample, border, decimate, resample
from jaxdiff.typing import Array, Features, Float, Images

Modulation = Literal["scale_shift", "shift"]


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a network have in common; the attributes are those of `UNet`."""

    head_dim: int | None = 32
    heads: int | None = None
    groups: int = 32
    min_group_size: int = 4
    eps: float = 1e-5
    modulation: Modulation = "scale_shift"
    skip_scale: float = 1.0
    resample_taps: tuple[float, ...] = (1.0, 1.0)
    project_resampled: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("head_dim", "heads", "groups", "min_group_size", "eps", "skip_scale"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "it must be positive", "give at least 1")
        require((self.head_dim is None) != (self.heads is None), "heads", self.heads,
                f"with head_dim={self.head_dim}, heads have no size or two",
                "give either head_dim or heads, and None for the other")  # fmt: skip
        require(self.modulation in ("scale_shift", "shift"), "modulation", self.modulation,
                "no such modulation", "give 'scale_shift' or 'shift'")  # fmt: skip
        taps = self.resample_taps
        require(len(taps) > 0 and len(taps) % 2 == 0 and sum(taps) > 0, "resample_taps", taps,
                "a filter that halves has an even number of taps, and a sum",
                "try (1.0, 1.0) or (1.0, 3.0, 3.0, 1.0)")  # fmt: skip
        check_dtype(self.dtype)

    def heads_of(self, width: int) -> int:
        """The number of attention heads over `width` channels."""
        return self.heads or width // (self.head_dim or width)

    def divides(self, width: int) -> bool:
        """Whether `width` channels make whole heads."""
        return width % (self.heads or self.head_dim or 1) == 0

    def norm(self, name: str, silu: bool = True) -> GroupNorm:
        return GroupNorm(self.groups, self.min_group_size, silu, self.eps, name=name)


class Block(nn.Module):
    """A residual block, then self-attention, then cross-attention: the two are independent options."""

    width: int
    options: BlockOptions
    self_attention: bool = False
    cross_attention: bool = False
    dropout: float = 0.0
    resample: Resample = "none"

    @nn.compact
    def __call__(self, x: Images, vector: Float[Array, "batch embed"], tokens: Tokens | None) -> Features:
        x = ResidualBlock(self.width, self.options, self.dropout, self.resample, name="residual")(x, vector)
        if self.self_attention:
            x = AttentionBlock(self.options, name="self_attention")(x)
        if self.cross_attention:
            x = AttentionBlock(self.options, name="cross_attention")(x, tokens)
        return x


class ResidualBlock(nn.Module):
    """The residual block of DDPM, NCSN++ and ADM (Ho et al. 2020; Song et al. 2021; Dhariwal & Nichol 2021).

    ``skip_scale (x + conv(dropout(silu(modulate(norm, conv(silu(norm(x))))))))``. With "scale_shift", `modulate` is
    ``(1 + scale) norm(h) + shift`` (ADM), with "shift" it is ``norm(h + shift)`` (DDPM), both linear in the vector. The
    last convolution starts at zero, so that the block starts as its skip. With `resample`, both branches are
    resampled before the first convolution.

    Attributes:
      dropout: its rate; 0 outside training.
    """

    width: int
    options: BlockOptions = BlockOptions()
    dropout: float = 0.0
    resample: Resample = "none"

    @nn.compact
    def __call__(self, x: Images, vector: Float[Array, "batch embed"]) -> Features:
        options = self.options
        h = options.norm("norm_0")(x)
        x, h = (resample(value, self.resample, options.resample_taps) for value in (x, h))
        h = Conv(self.width, dtype=options.dtype, name="conv_0")(h)
        # Float32: these are numbers per image, not per pixel, and they multiply everything.
        modulate = options.norm("norm_1")
        if options.modulation == "scale_shift":
            scale, shift = jnp.split(Dense(2 * self.width, name="modulation")(vector), 2, axis=-1)
            h = modulate(h, scale, shift)
        else:
            shift = Dense(self.width, name="modulation")(vector).astype(h.dtype)
            h = modulate(h + shift[:, None, None])
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False, name="dropout")(h)
        h = Conv(self.width, zero=True, dtype=options.dtype, name="conv_1")(h)
        if x.shape[-1] != self.width or (options.project_resampled and self.resample != "none"):
            x = Conv(self.width, size=1, dtype=options.dtype, name="skip")(x)
        return scaled(x + h, options.skip_scale)


class AttentionBlock(nn.Module):
    """``skip_scale (x + project(attention(norm(x))))`` over pixels, or over tokens if given; starts as its skip."""

    options: BlockOptions = BlockOptions()

    @nn.compact
    def __call__(self, x: Images, tokens: Tokens | None = None) -> Images:
        batch, height, width, channels = x.shape
        options = self.options
        h = options.norm("norm", silu=False)(x).reshape(batch, height * width, channels)
        heads = options.heads_of(channels)
        split = {"heads": heads, "head_dim": channels // heads, "dtype": options.dtype}
        if tokens is None:
            query, key, value = ToHeads(3, name="query_key_value", **split)(h)
            h = attend(query, key, value)
        else:
            (query,) = ToHeads(1, name="query", **split)(h)
            key, value = ToHeads(2, name="key_value", **split)(tokens.features)
            h = attend(query, key, value, tokens.mask)
        h = FromHeads(channels, dtype=options.dtype, name="out")(h).reshape(x.shape)
        return scaled(x + h, options.skip_scale)


class Downsample(nn.Module):
    """Halve the size by a 3 x 3 convolution of stride 2 (Ho et al. 2020).

    Attributes:
      pad_end: pad with zeros at the right and the bottom only, as TensorFlow does and with it the first DDPMs, rather
        than on all sides.
    """

    width: int
    pad_end: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Features:
        padding = (0, 1) if self.pad_end else (1, 1)
        return Conv(self.width, stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double the size by repeating pixels, then a 3 x 3 convolution (Ho et al. 2020)."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Features:
        return Conv(self.width, dtype=self.dtype, name="conv")(resample(x, "up"))


class InputPath(nn.Module):
    """The network's input, or what became of it, at half the size: NCSN++'s residual path (Song et al. 2021, H.1).

    A 3 x 3 convolution, then the filter at every other pixel. The convolution also gives what the filter sees beyond
    the border, where the images themselves are 0.
    """

    width: int
    taps: tuple[float, ...]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Features:
        before, after = border(self.taps)
        h = Conv(self.width, padding=(1 + before, 1 + after), dtype=self.dtype, name="conv")(x)
        return decimate(h, self.taps)


def scaled(x: Images, scale: float) -> Images:
    """``scale x``; 1 costs nothing."""
    return x if scale == 1 else x * jnp.asarray(scale, x.dtype)
