"""Residual blocks that adapt to a vector, changes of resolution, and the residual middle of a U-Net."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.models.interface import BlockInputs, BlockOptions, Part, reads_image_prompts
from jaxdiff.models.layers import Conv, Dense, scaled
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.resampling import Resample, resample
from jaxdiff.typing import Array, Features, Float, Images


class Block(nn.Module):
    """A residual block, then attention if there is any."""

    width: int
    attention: Part | None = None
    resample: Resample = "none"

    @nn.compact
    def __call__(self, h: Images, inputs: BlockInputs) -> Features:
        residual = ResidualBlock(
            self.width, inputs.options, inputs.dropout, self.resample, inputs.dtype, name="residual"
        )
        h = residual(h, inputs.vector)
        return h if self.attention is None else self.attention(h, inputs)


def apply_block(
    name: str,
    h: Images,
    inputs: BlockInputs,
    width: int,
    attention: Part | None = None,
    resample: Resample = "none",
) -> Features:
    """Apply a `Block` called `name` in the scope of the calling module, rematerialised if the inputs say so."""
    # nn.remat would put its own class into a default name: every name is given.
    cls = nn.remat(Block) if inputs.remat else Block
    return cls(width, attention, resample, name=name)(h, inputs.replace(remat=False))


@dataclasses.dataclass(frozen=True)
class ResidualMiddle:
    """The middle of DDPM, ADM and Stable Diffusion: two residual blocks, with attention after the first.

    Attributes:
      attention: `PixelAttention`, `SpatialTransformer` or None.
    """

    attention: Part | None = PixelAttention()

    @property
    def reads_tokens(self) -> bool:
        return self.attention is not None and self.attention.reads_tokens

    @property
    def reads_image_prompts(self) -> bool:
        return reads_image_prompts(self.attention)

    def check(self, width: int, field: str) -> None:
        if self.attention is not None:
            self.attention.check(width, field)

    def __call__(self, h: Images, inputs: BlockInputs) -> Features:
        width = h.shape[-1]
        h = apply_block("middle_block_0", h, inputs, width, self.attention)
        return apply_block("middle_block_1", h, inputs, width)


class ResidualBlock(nn.Module):
    """The residual block of DDPM, NCSN++ and ADM (Ho et al. 2020; Song et al. 2021; Dhariwal & Nichol 2021).

    ``skip_scale (x + conv(dropout(silu(modulate(norm, conv(silu(norm(x))))))))``. With "scale_shift", `modulate` is
    ``(1 + scale) norm(h) + shift`` (ADM), with "shift" it is ``norm(h + shift)`` (DDPM), both linear in the vector. The
    last convolution starts at zero, so that the block starts as its skip. With `resample`, both branches are
    resampled before the first convolution.

    Attributes:
      dropout: dropout rate; 0 outside training.
    """

    width: int
    options: BlockOptions = BlockOptions()
    dropout: float = 0.0
    resample: Resample = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images, vector: Float[Array, "batch embed"]) -> Features:
        options = self.options
        h = options.norm("norm_0")(x)
        x, h = (resample(value, self.resample, options.resample_taps) for value in (x, h))
        h = Conv(self.width, dtype=self.dtype, name="conv_0")(h)
        # Float32: scale and shift are numbers per image, not per pixel, and they multiply everything.
        modulate = options.norm("norm_1")
        if options.modulation == "scale_shift":
            scale, shift = jnp.split(Dense(2 * self.width, name="modulation")(vector), 2, axis=-1)
            h = modulate(h, scale, shift)
        else:
            shift = Dense(self.width, name="modulation")(vector).astype(h.dtype)
            h = modulate(h + shift[:, None, None])
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False, name="dropout")(h)
        h = Conv(self.width, zero=True, dtype=self.dtype, name="conv_1")(h)
        if x.shape[-1] != self.width or (options.project_resampled and self.resample != "none"):
            x = Conv(self.width, size=1, dtype=self.dtype, name="skip")(x)
        return scaled(x + h, options.skip_scale)


class Downsample(nn.Module):
    """Halve the resolution by a 3 x 3 convolution of stride 2 (Ho et al. 2020).

    Attributes:
      pad_end: pad with zeros at the right and the bottom only, as TensorFlow and the first DDPMs do, rather than on all
        sides.
    """

    width: int
    pad_end: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Features:
        padding = (0, 1) if self.pad_end else (1, 1)
        return Conv(self.width, stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double the resolution by repeating pixels, then a 3 x 3 convolution (Ho et al. 2020)."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Features:
        return Conv(self.width, dtype=self.dtype, name="conv")(resample(x, "up"))
