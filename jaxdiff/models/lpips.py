"""LPIPS: a perceptual distance of images by the features of a classifier (Zhang et al. 2018), VGG-16 or AlexNet."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import expect, one_of
from jaxdiff.models.layers import Conv
from jaxdiff.typing import Array, Features, Float, Images

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of the blocks of VGG-16 (Simonyan & Zisserman 2015)."""

MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of ImageNet's channels, for images in [-1, 1]."""


def normalised(x: Images) -> Images:
    """Images in [-1, 1] with ImageNet's mean and standard deviation removed."""
    return (x - jnp.asarray(MEAN)[None, None, None]) / jnp.asarray(STD)[None, None, None]


class Vgg16(nn.Module):
    """The features of VGG-16 after the last convolution of each block, from images in [-1, 1]."""

    @nn.compact
    def __call__(self, x: Images) -> list[Features]:
        h, found = normalised(x), []
        for i, (width, convolutions) in enumerate(BLOCKS):
            h = h if i == 0 else nn.max_pool(h, (2, 2), (2, 2))
            for j in range(convolutions):
                h = jax.nn.relu(Conv(width, name=f"conv_{i}_{j}")(h))
            found.append(h)
        return found


class AlexLayer(NamedTuple):
    """A convolution of AlexNet: channels, side and stride of the kernel, padding; whether maxima are taken before."""

    width: int
    size: int
    stride: int
    padding: int
    pooled: bool


ALEX_LAYERS = (
    AlexLayer(64, 11, 4, 2, False),
    AlexLayer(192, 5, 1, 2, True),
    AlexLayer(384, 3, 1, 1, True),
    AlexLayer(256, 3, 1, 1, False),
    AlexLayer(256, 3, 1, 1, False),
)
"""The convolutions of AlexNet in the form of Krizhevsky (2014)."""


class AlexNet(nn.Module):
    """The features of AlexNet after each convolution, from images in [-1, 1] with sides of at least 31 pixels."""

    @nn.compact
    def __call__(self, x: Images) -> list[Features]:
        h, found = normalised(x), []
        for i, layer in enumerate(ALEX_LAYERS):
            h = nn.max_pool(h, (3, 3), (2, 2)) if layer.pooled else h
            padding = (layer.padding, layer.padding)
            h = jax.nn.relu(Conv(layer.width, layer.size, layer.stride, padding, name=f"conv_{i}")(h))
            found.append(h)
        return found


NETWORKS = {"vgg": Vgg16, "alex": AlexNet}
"""Networks by the names of the authors' code."""

LEAST_SIDE = {"vgg": 16, "alex": 31}
"""Of images, in pixels: below it, the last features have no pixel."""


def channels(network: str) -> Sequence[int]:
    """The channels of each of the features of a network of `NETWORKS`."""
    return [width for width, _ in BLOCKS] if network == "vgg" else [layer.width for layer in ALEX_LAYERS]


class Lpips(nn.Module):
    """Distances of pairs of images: differences of unit features, weighted by channel, averaged over pixels, summed.

    The weights of channels are not negative.

    Attributes:
      network: "vgg", smoother as a loss, or "alex", closest to human judgement as a metric (the authors' README).
    """

    network: str = "vgg"

    def __post_init__(self):
        one_of(self, "network", NETWORKS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, y: Images) -> Float[Array, "batch"]:
        """The distances of images in [-1, 1].

        Raises:
          UserError: the images are smaller than `LEAST_SIDE`.
        """
        least = LEAST_SIDE[self.network]
        big = min(x.shape[1:3]) >= least
        expect(big, "images", x.shape[1:3], f"sides of at least {least} pixels", "use larger images")
        network, total = NETWORKS[self.network](name="features"), jnp.zeros(x.shape[0])
        for i, (one, other) in enumerate(zip(network(x), network(y), strict=True)):
            weights = self.param(f"weights_{i}", nn.initializers.ones, (one.shape[-1],))
            difference = jnp.square(_unit(one) - _unit(other)) * weights[None, None, None]
            total = total + jnp.mean(jnp.sum(difference, axis=-1), axis=(1, 2))
        return total


def _unit(h: Features) -> Features:
    """Features of length 1 at each pixel. The norm has a gradient at zero, too."""
    return h * jax.lax.rsqrt(jnp.sum(jnp.square(h), axis=-1, keepdims=True) + 1e-20)
