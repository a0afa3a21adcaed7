"""LPIPS: a perceptual distance of images by the features of a classifier (Zhang et al. 2018), here of VGG-16."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.models.layers import Conv
from jaxdiff.typing import Array, Features, Float, Images

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of the blocks of VGG-16 (Simonyan & Zisserman 2015)."""

MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of ImageNet's channels, for images in [-1, 1]."""


class Vgg16(nn.Module):
    """The features of VGG-16 after the last convolution of each block, from images in [-1, 1]."""

    @nn.compact
    def __call__(self, x: Images) -> list[Features]:
        h = (x - jnp.asarray(MEAN)[None, None, None]) / jnp.asarray(STD)[None, None, None]
        found = []
        for i, (width, convolutions) in enumerate(BLOCKS):
            h = h if i == 0 else nn.max_pool(h, (2, 2), (2, 2))
            for j in range(convolutions):
                h = jax.nn.relu(Conv(width, name=f"conv_{i}_{j}")(h))
            found.append(h)
        return found


class Lpips(nn.Module):
    """Distances of pairs of images: differences of unit features, weighted by channel, averaged over pixels, summed.

    The weights of channels are not negative. Sides of at least 16 pixels are needed.
    """

    @nn.compact
    def __call__(self, x: Images, y: Images) -> Float[Array, "batch"]:
        network, total = Vgg16(name="features"), jnp.zeros(x.shape[0])
        for i, (one, other) in enumerate(zip(network(x), network(y), strict=True)):
            weights = self.param(f"weights_{i}", nn.initializers.ones, (one.shape[-1],))
            difference = jnp.square(_unit(one) - _unit(other)) * weights[None, None, None]
            total = total + jnp.mean(jnp.sum(difference, axis=-1), axis=(1, 2))
        return total


def _unit(h: Features) -> Features:
    """Features of length 1 at each pixel. The norm has a gradient at zero, too."""
    return h * jax.lax.rsqrt(jnp.sum(jnp.square(h), axis=-1, keepdims=True) + 1e-20)
