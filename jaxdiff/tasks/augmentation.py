"""Augmentation that does not leak: images are changed, and the model is told how."""

import dataclasses
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.tasks.warping import warp
from jaxdiff.typing import Array, Bool, Float, Images, Keys

FIELD = "augment"
"""The condition that tells the model what was done."""


@runtime_checkable
class Augmentation(Protocol):
    """Random changes of images, and `size` numbers for each that say what they were; zeros say: none."""

    size: int

    def __call__(self, images: Images, keys: Keys) -> tuple[Images, Float[Array, "batch labels"]]: ...


class Geometry(NamedTuple):
    """What is done to each image, in this order.

    Attributes:
      x_flip, y_flip: mirrored left to right, top to bottom.
      scale: logarithm of the enlargement, in standard deviations.
      angle: of the rotation, counter-clockwise, in radians.
      stretch: logarithm of the anisotropic scaling, in standard deviations: enlarged along `axis`, shrunk across it.
      axis: an angle, counter-clockwise from the x axis.
      translation: to the right and down, in standard deviations.
    """

    x_flip: Bool[Array, "batch"]
    y_flip: Bool[Array, "batch"]
    scale: Float[Array, "batch"]
    angle: Float[Array, "batch"]
    stretch: Float[Array, "batch"]
    axis: Float[Array, "batch"]
    translation: Float[Array, "batch 2"]

    def labels(self) -> Float[Array, "batch 9"]:
        """The nine numbers of EDM: 0 for what is not done, and continuous where angles begin again."""
        numbers = [
            self.x_flip, self.y_flip, self.scale, jnp.cos(self.angle) - 1, jnp.sin(self.angle),
            self.stretch * jnp.cos(self.axis), self.stretch * jnp.sin(self.axis), *self.translation.T,
        ]  # fmt: skip
        return jnp.stack([number.astype(self.scale.dtype) for number in numbers], axis=-1)


@dataclasses.dataclass(frozen=True)
class GeometricAugmentation:
    """EDM's flips, scaling, rotation, stretching and translation (Karras et al. 2022, appendix F.2).

    Each is done to an image with probability `p`, independently; flips then in half of the cases, and the flip left to
    right always so. All that is no flip is one affine map, see `warping.warp`. An image of which all labels are 0 is
    untouched. Sizes of 0 and False leave a kind out.

    Attributes:
      p: 0.12 for CIFAR-10 and 0.15 for FFHQ and AFHQv2 in the paper.
      x_flip, y_flip: whether there are such flips.
      scale: standard deviation of the logarithm, to base 2, of the enlargement.
      rotation: the largest angle, in half turns.
      anisotropy: standard deviation of the logarithm, to base 2, of the stretching; in half of the cases along the
        x axis, else along any.
      translation: standard deviation in either direction, as a share of the image's size.
    """

    p: float = 0.12
    x_flip: bool = True
    y_flip: bool = True
    scale: float = 0.2
    rotation: float = 1.0
    anisotropy: float = 0.2
    translation: float = 0.125
    size = 9

    def __post_init__(self):
        require(0 <= self.p <= 1, "p", self.p, "it is a probability", "try 0.12")
        require(
            0 <= self.rotation <= 1,
            "rotation",
            self.rotation,
            "a half turn to either side is all",
            "give 0 to 1",
        )
        for name in ("scale", "anisotropy", "translation"):
            require(
                getattr(self, name) >= 0, name, getattr(self, name), "it is a standard deviation", "try 0.2"
            )

    def __call__(self, images: Images, keys: Keys) -> tuple[Images, Float[Array, "batch 9"]]:
        geometry = self.draw(keys)
        return self.apply(images, geometry), geometry.labels()

    def draw(self, keys: Keys) -> Geometry:
        """What is to be done, from one key for each image."""
        kinds = (self.y_flip, self.scale > 0, self.rotation > 0, self.anisotropy > 0, self.translation > 0)

        def one(key: Array) -> Geometry:
            key_done, key_halves, key_normal, key_angle = jax.random.split(key, 4)
            flips, scales, turns, stretches, moves = jax.random.uniform(key_done, (5,)) < self.p * jnp.array(
                kinds
            )
            left, top, tilted = jax.random.bernoulli(key_halves, 0.5, (3,))
            scale, stretch, *translation = jax.random.normal(key_normal, (4,))
            angle, axis = jax.random.uniform(key_angle, (2,), minval=-math.pi, maxval=math.pi)
            return Geometry(
                x_flip=left & self.x_flip,
                y_flip=top & flips,
                scale=jnp.where(scales, scale, 0),
                angle=jnp.where(turns, self.rotation * angle, 0),
                stretch=jnp.where(stretches, stretch, 0),
                axis=jnp.where(tilted, axis, 0),
                translation=jnp.where(moves, jnp.stack(translation), 0),
            )

        return jax.vmap(one)(keys)

    def apply(self, images: Images, geometry: Geometry) -> Images:
        """The images, changed so."""
        for flip, axis in ((geometry.x_flip, 2), (geometry.y_flip, 1)):
            images = jnp.where(flip[:, None, None, None], jnp.flip(images, axis), images)
        matrix, shift = self.inverse(geometry, *images.shape[1:3])
        moved = jnp.any(geometry.labels()[:, 2:] != 0, axis=-1)
        return jnp.where(moved[:, None, None, None], warp(images, matrix, shift), images)

    def inverse(
        self, geometry: Geometry, height: int, width: int
    ) -> tuple[Float[Array, "batch 2 2"], Float[Array, "batch 2"]]:
        """The map from where a pixel is to where it was, flips aside: ``p -> matrix p + shift``."""
        stretch = jnp.exp2(self.anisotropy * geometry.stretch)
        scaling = jnp.exp2(-self.scale * geometry.scale)[:, None, None]
        stretching = _diagonal(1 / stretch, stretch)
        matrix = scaling * _product(
            _rotation(geometry.angle), _rotation(-geometry.axis), stretching, _rotation(geometry.axis)
        )
        moved = self.translation * geometry.translation * jnp.array([width, height])[None]
        return matrix, -jnp.sum(matrix * moved[:, None, :], axis=-1)


def _rotation(angle: Float[Array, "batch"]) -> Float[Array, "batch 2 2"]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def _diagonal(x: Float[Array, "batch"], y: Float[Array, "batch"]) -> Float[Array, "batch 2 2"]:
    return jnp.stack([x, y], -1)[:, :, None] * jnp.eye(2)[None]


def _product(*matrices: Float[Array, "batch 2 2"]) -> Float[Array, "batch 2 2"]:
    """In the precision of their numbers: a matrix unit's default would move pixels."""
    product = matrices[0]
    for matrix in matrices[1:]:
        product = jnp.sum(product[:, :, :, None] * matrix[:, None, :, :], axis=2)
    return product
