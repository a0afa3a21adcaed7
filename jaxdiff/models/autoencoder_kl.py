"""AutoencoderKL: the autoencoder of latent diffusion, from images to the posterior of latents and back.

The source is Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". The defaults are the
network of Stable Diffusion 1, 2 and XL. Stable Diffusion 3 and Flux have 16 latent channels and no quant convolutions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import expect, positive
from jaxdiff.models.blocks import Downsample, Upsample
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.layers import Conv, check_dtype
from jaxdiff.models.pixel_attention import AttentionBlock
from jaxdiff.typing import Array, Features, Float, Images

EPS = 1e-6
"""Added to the variance in every group norm."""

LOG_VARIANCES = (-30.0, 20.0)
"""The range to which log-variances of the posterior are clipped."""

Moments = Float[Array, "batch rows columns moments"]
Latents = Float[Array, "batch rows columns latent_channels"]


class AutoencoderKL(nn.Module):
    """Images [batch, height, width, image_channels] to latents [batch, height / factor, width / factor, channels].

    Parameters are float32. The network computes in `dtype`; the posterior is float32 whatever the dtype.

    Attributes:
      widths: channels of each resolution, the finest first.
      blocks: residual blocks of each resolution in the encoder; the decoder has one more.
      latent_channels: channels of the latents.
      image_channels: channels of the images, which the decoder returns as well.
      groups: number of groups in every group norm.
      middle_attention: attention with one head at the coarsest resolution.
      use_quant_conv: a 1 x 1 convolution after the encoder.
      use_post_quant_conv: a 1 x 1 convolution before the decoder.
      dtype: in which convolutions and attention compute.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    groups: int = 32
    middle_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "blocks", "latent_channels", "image_channels", "groups")
        fix = "give the channels of at least one resolution"
        expect(len(self.widths) > 0, "widths", self.widths, "at least one number", fix)
        whole = all(width > 0 and width % self.groups == 0 for width in self.widths)
        expected = f"multiples of groups={self.groups}"
        expect(whole, "widths", self.widths, expected, "change the widths or the groups")
        check_dtype(self.dtype)
        super().__post_init__()

    @property
    def factor(self) -> int:
        """Pixels along the side of one latent."""
        return 2 ** (len(self.widths) - 1)

    def setup(self):
        shared = (self.widths, self.groups, self.middle_attention, self.dtype)
        self.encoder = Encoder(2 * self.latent_channels, self.blocks, *shared)
        self.decoder = Decoder(self.image_channels, self.blocks + 1, *shared)
        if self.use_quant_conv:
            self.quant_conv = Conv(2 * self.latent_channels, size=1, dtype=self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = Conv(self.latent_channels, size=1, dtype=self.dtype)

    def __call__(self, x: Images) -> Features:
        """Images encoded to the mean of their posterior, and decoded."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: Images) -> tuple[Latents, Latents]:
        """The mean and the log-variance of the posterior of images in [-1, 1], float32."""
        return self.posterior(self.moments(x))

    def moments(self, x: Images) -> Moments:
        """The encoder's output: mean and log-variance as one array, not yet clipped."""
        h = self.encoder(x)
        return self.quant_conv(h) if self.use_quant_conv else h

    @nn.nowrap
    def posterior(self, moments: Moments) -> tuple[Latents, Latents]:
        """The mean and the clipped log-variance in float32, from the output of `moments`."""
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCES)

    def decode(self, z: Latents) -> Images:
        """Images near [-1, 1] of latents, in `dtype`."""
        return self.decoder(self.post_quant_conv(z) if self.use_post_quant_conv else z)


class Encoder(nn.Module):
    """Residual blocks that halve the resolution between levels, then a residual middle.

    Attributes:
      out_channels: channels of the output.
      blocks: residual blocks of each resolution.
    """

    out_channels: int
    blocks: int
    widths: tuple[int, ...]
    groups: int
    middle_attention: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Images) -> Features:
        options = BlockOptions(self.groups, 1, EPS)
        h = Conv(self.widths[0], dtype=self.dtype, name="stem")(x)
        for i, width in enumerate(self.widths):
            if i > 0:
                h = Downsample(h.shape[-1], pad_end=True, dtype=self.dtype, name=f"down_{i - 1}")(h)
            h = _level(h, i, width, self.blocks, options, self.dtype)
        h = _middle(h, self.middle_attention, options, self.dtype)
        return _head(h, self.out_channels, options, self.dtype)


class Decoder(nn.Module):
    """A residual middle, then residual blocks that double the resolution between levels.

    Level 0 is the finest, as in the encoder. Attributes are those of `Encoder`.
    """

    out_channels: int
    blocks: int
    widths: tuple[int, ...]
    groups: int
    middle_attention: bool
    dtype: str

    @nn.compact
    def __call__(self, z: Images) -> Features:
        options = BlockOptions(self.groups, 1, EPS)
        h = Conv(self.widths[-1], dtype=self.dtype, name="stem")(z)
        h = _middle(h, self.middle_attention, options, self.dtype)
        for i, width in reversed(list(enumerate(self.widths))):
            h = _level(h, i, width, self.blocks, options, self.dtype)
            if i > 0:
                h = Upsample(width, dtype=self.dtype, name=f"up_{i}")(h)
        return _head(h, self.out_channels, options, self.dtype)


class ResidualBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``; no vector. Another width takes a 1 x 1 convolution on `x`."""

    width: int
    options: BlockOptions = BlockOptions()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Features:
        h = Conv(self.width, dtype=self.dtype, name="conv_0")(self.options.norm("norm_0")(x))
        h = Conv(self.width, dtype=self.dtype, name="conv_1")(self.options.norm("norm_1")(h))
        if x.shape[-1] != self.width:
            x = Conv(self.width, size=1, dtype=self.dtype, name="skip")(x)
        return x + h


# The modules below become children of the module that calls these functions.


def _level(h: jax.Array, level: int, width: int, blocks: int, options: BlockOptions, dtype: str) -> jax.Array:
    for j in range(blocks):
        h = ResidualBlock(width, options, dtype, name=f"level_{level}_block_{j}")(h)
    return h


def _middle(h: jax.Array, attention: bool, options: BlockOptions, dtype: str) -> jax.Array:
    width = h.shape[-1]
    h = ResidualBlock(width, options, dtype, name="middle_block_0")(h)
    if attention:
        h = AttentionBlock(1, options, dtype, name="middle_attention")(h)
    return ResidualBlock(width, options, dtype, name="middle_block_1")(h)


def _head(h: jax.Array, out_channels: int, options: BlockOptions, dtype: str) -> jax.Array:
    return Conv(out_channels, dtype=dtype, name="head")(options.norm("head_norm")(h))
