"""Preprocessing profiles: how stored images are resized for a network. The same network in another profile is another
feature space.

Images come as uint8, rounded once (`jaxdiff.data.images.to_uint8`), and no profile rounds them again.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from jaxdiff.errors import UserError
from jaxdiff.models.interpolation import (
    Matrix,
    antialiased_bicubic,
    bicubic,
    bilinear,
    interpolate,
    tensorflow_bilinear,
)
from jaxdiff.typing import Array, Features, UInt8

LARGEST = 255.0


@dataclasses.dataclass(frozen=True)
class Profile:
    """A way to resize images to squares, and to scale their values for InceptionV3.

    Attributes:
      name: stated in reports.
      matrix: the resizing of one axis, from its old and new length.
      clipped: whether values outside [0, 255], which bicubic kernels make, are clipped.
      centre: the level that becomes 0; `centre` levels more become 1.
    """

    name: str
    matrix: Callable[[int, int], Matrix]
    clipped: bool = False
    centre: float = 128.0

    def resized(self, images: UInt8[Array, "n height width channels"], size: int) -> Features:
        """Images of `size` x `size` pixels with values in levels, 0 to 255. One of this size already is unchanged."""
        height, width = images.shape[1:3]
        levels = images.astype(jnp.float32)
        if (height, width) != (size, size):
            levels = interpolate(levels, self.matrix(height, size), self.matrix(width, size))
        return jnp.clip(levels, 0, LARGEST) if self.clipped else levels

    def scaled(self, images: UInt8[Array, "n height width channels"], size: int) -> Features:
        """As `resized`, with values in [-1, 1]."""
        return (self.resized(images, size) - self.centre) / self.centre


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("adm-tf", tensorflow_bilinear),
        Profile("pytorch-fid", bilinear, centre=LARGEST / 2),
        Profile("clean-fid", antialiased_bicubic, clipped=True),
        Profile("edm2", antialiased_bicubic),
        Profile("cmmd-pytorch", bicubic),
    )
}
"""The profiles by name.

* adm-tf: TensorFlow 1's resize inside the graph, as the evaluation of ADM (Dhariwal & Nichol 2021), torch-fidelity, and
  EDM's FID have it. Values are ``(x - 128) / 128``.
* pytorch-fid: PyTorch's bilinear resize, and values ``x / 127.5 - 1``.
* clean-fid: Pillow's bicubic resize with a low-pass, in floats, channel by channel, clipped to [0, 255] and not rounded
  (Parmar et al. 2022). Values are ``(x - 128) / 128``.
* edm2: the same without clipping, as EDM2 resizes for DINOv2 (Karras et al. 2024).
* cmmd-pytorch: PyTorch's bicubic resize without a low-pass, as the PyTorch code of CMMD has it.
"""


def profile_of(name: str, *allowed: str) -> Profile:
    """The profile of this name, if the network is used with it.

    Raises:
      UserError: another name.
    """
    if name not in allowed:
        raise UserError(
            f"profile={name!r}: expected one of {', '.join(allowed)}, got {name!r}. Fix: use {allowed[0]!r}"
        )
    return PROFILES[name]


def coloured(images: UInt8[Array, "n height width channels"]) -> UInt8[Array, "n height width 3"]:
    """Images with three channels: grey ones have the same value in each."""
    return jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
