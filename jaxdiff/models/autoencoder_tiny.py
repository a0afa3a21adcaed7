"""TAESD: a tiny autoencoder with the latents of Stable Diffusion, for fast previews and little memory.

The source is the Tiny AutoEncoder for Stable Diffusion (Ollin Boer Bohan 2023, https://github.com/madebyollin/taesd),
called AutoencoderTiny in diffusers. Its latents have the scale in which Stable Diffusion diffuses.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import expect, positive
from jaxdiff.models.layers import Conv, check_dtype
from jaxdiff.models.resampling import resample
from jaxdiff.typing import Array, Features, Float, Images

BOUND = 3.0
"""Latents are brought between -3 and 3 before they are decoded, ``3 tanh(z / 3)``."""

Latents = Float[Array, "batch rows columns latent_channels"]


class AutoencoderTiny(nn.Module):
    """Images [batch, height, width, image_channels] to latents [batch, height / factor, width / factor, channels].

    There is no posterior: its variance is 0. Parameters are float32.

    Attributes:
      width: channels of all features.
      encoder_blocks: residual blocks of each resolution of the encoder, the finest first.
      decoder_blocks: residual blocks of each resolution of the decoder, the coarsest first.
      latent_channels: channels of the latents.
      image_channels: channels of the images.
      dtype: in which convolutions compute.
    """

    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    image_channels: int = 3
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "width", "latent_channels", "image_channels")
        expect(
            len(self.encoder_blocks) == len(self.decoder_blocks) > 0,
            "decoder_blocks",
            self.decoder_blocks,
            f"as many resolutions as encoder_blocks={self.encoder_blocks}",
            "give one number for each resolution",
        )
        check_dtype(self.dtype)
        super().__post_init__()

    @property
    def factor(self) -> int:
        """Pixels along the side of one latent."""
        return 2 ** (len(self.encoder_blocks) - 1)

    def setup(self):
        self.encoder = TinyEncoder(self.latent_channels, self.width, self.encoder_blocks, self.dtype)
        self.decoder = TinyDecoder(self.image_channels, self.width, self.decoder_blocks, self.dtype)

    def __call__(self, x: Images) -> Features:
        """Images encoded and decoded."""
        return self.decode(self.moments(x))

    def encode(self, x: Images) -> tuple[Latents, Latents]:
        """Latents of images in [-1, 1], and minus infinity, the logarithm of no variance; both float32."""
        return self.posterior(self.moments(x))

    def moments(self, x: Images) -> Latents:
        """The encoder's output: the latents."""
        return self.encoder((x + 1) / 2)

    @nn.nowrap
    def posterior(self, moments: Latents) -> tuple[Latents, Latents]:
        """The latents in float32 and a log-variance of minus infinity, from the output of `moments`."""
        mean = moments.astype(jnp.float32)
        return mean, jnp.full_like(mean, -jnp.inf)

    def decode(self, z: Latents) -> Images:
        """Images near [-1, 1] of latents, in `dtype`."""
        return 2 * self.decoder(BOUND * jnp.tanh(z / BOUND)) - 1


class TinyEncoder(nn.Module):
    """Residual blocks with a strided convolution between resolutions; level 0 is the finest."""

    out_channels: int
    width: int
    blocks: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, x: Images) -> Features:
        h = Conv(self.width, dtype=self.dtype, name="stem")(x)
        for i, count in enumerate(self.blocks):
            if i > 0:
                h = Conv(self.width, stride=2, bias=False, dtype=self.dtype, name=f"down_{i - 1}")(h)
            h = _level(h, i, count, self.dtype)
        return Conv(self.out_channels, dtype=self.dtype, name="head")(h)


class TinyDecoder(nn.Module):
    """Residual blocks with repeated pixels and a convolution between resolutions; level 0 is the finest."""

    out_channels: int
    width: int
    blocks: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, z: Images) -> Features:
        h = jax.nn.relu(Conv(self.width, dtype=self.dtype, name="stem")(z))
        for i, count in zip(reversed(range(len(self.blocks))), self.blocks, strict=True):
            h = _level(h, i, count, self.dtype)
            if i > 0:
                h = Conv(self.width, bias=False, dtype=self.dtype, name=f"up_{i}")(resample(h, "up"))
        return Conv(self.out_channels, dtype=self.dtype, name="head")(h)


class TinyBlock(nn.Module):
    """``relu(x + conv(relu(conv(relu(conv(x))))))``."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Images:
        h = x
        for i in range(3):
            h = Conv(x.shape[-1], dtype=self.dtype, name=f"conv_{i}")(jax.nn.relu(h) if i else h)
        return jax.nn.relu(x + h)


def _level(h: jax.Array, level: int, count: int, dtype: str) -> jax.Array:
    """The blocks of a level, as children of the calling module."""
    for j in range(count):
        h = TinyBlock(dtype, name=f"level_{level}_block_{j}")(h)
    return h
