"""Non-leaking augmentation: images are transformed, and the transformation is a condition of the model."""

import dataclasses
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import between
from jaxdiff.tasks.warping import warp
from jaxdiff.typing import Array, Bool, Float, Images, Keys

FIELD = "augment"
"""Name of the condition that describes the transformation."""


@runtime_checkable
class Augmentation(Protocol):
    """Random transformations of images, and `size` labels per image that describe them; zeros for none."""

    size: int

    def __call__(self, images: Images, keys: Keys) -> tuple[Images, Float[Array, "batch labels"]]: ...


class Geometry(NamedTuple):
    """Transformation of each image, applied in this order.

    Attributes:
      x_flip, y_flip: whether it is mirrored left to right, top to bottom.
      scale: logarithm of the enlargement, in standard deviations.
      angle: counter-clockwise rotation, in radians.
      stretch: logarithm of the anisotropic scaling, in standard deviations; enlarges along `axis`, shrinks across it.
      axis: counter-clockwise angle from the x axis, in radians.
      translation: shift to the right and down, in standard deviations.
    """

    x_flip: Bool[Array, "batch"]
    y_flip: Bool[Array, "batch"]
    scale: Float[Array, "batch"]
    angle: Float[Array, "batch"]
    stretch: Float[Array, "batch"]
    axis: Float[Array, "batch"]
    translation: Float[Array, "batch 2"]

    def labels(self) -> Float[Array, "batch 9"]:
        """The nine labels of EDM: 0 without the transformation, and continuous across the period of angles."""
        numbers = [
            self.x_flip, self.y_flip, self.scale, jnp.cos(self.angle) - 1, jnp.sin(self.angle),
            self.stretch * jnp.cos(self.axis), self.stretch * jnp.sin(self.axis), *self.translation.T,
        ]  # fmt: skip
        return jnp.stack([number.astype(self.scale.dtype) for number in numbers], axis=-1)


@dataclasses.dataclass(frozen=True)
class GeometricAugmentation:
    """EDM's flips, scaling, rotation, stretching and translation (Karras et al. 2022, appendix F.2).

    Each kind is applied to an image with probability `p`, independently. A vertical flip then happens in half of the
    cases; the horizontal flip has probability 1/2 regardless of `p`. All kinds but flips form one affine map, see
    `warping.warp`. An image whose labels are all 0 is unchanged. False, or a size of 0, disables a kind.

    Attributes:
      p: probability of each kind; 0.12 for CIFAR-10, and 0.15 for FFHQ and AFHQv2 in the paper.
      x_flip, y_flip: whether to flip left to right, top to bottom.
      scale: standard deviation of the base-2 logarithm of the enlargement.
      rotation: largest angle, in half turns, in [0, 1].
      anisotropy: standard deviation of the base-2 logarithm of the stretching; in half of the cases along the x axis,
        else in a random direction.
      translation: standard deviation in either direction, as a fraction of the image's size.
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
        between(self, "p", 0, 1)
        between(self, "rotation", 0, 1)
        for deviation in ("scale", "anisotropy", "translation"):
            between(self, deviation, 0, math.inf)

    def __call__(self, images: Images, keys: Keys) -> tuple[Images, Float[Array, "batch 9"]]:
        geometry = self.draw(keys)
        return self.apply(images, geometry), geometry.labels()

    def draw(self, keys: Keys) -> Geometry:
        """Random transformations, from one key per image."""
        kinds = (self.y_flip, self.scale > 0, self.rotation > 0, self.anisotropy > 0, self.translation > 0)

        def one(key: Array) -> Geometry:
            key_applied, key_halves, key_normal, key_angle = jax.random.split(key, 4)
            applied = jax.random.uniform(key_applied, (5,)) < self.p * jnp.array(kinds)
            flips, scales, turns, stretches, moves = applied
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
        """The transformed images."""
        for flip, axis in ((geometry.x_flip, 2), (geometry.y_flip, 1)):
            images = jnp.where(flip[:, None, None, None], jnp.flip(images, axis), images)
        matrix, shift = self.inverse(geometry, *images.shape[1:3])
        moved = jnp.any(geometry.labels()[:, 2:] != 0, axis=-1)
        return jnp.where(moved[:, None, None, None], warp(images, matrix, shift), images)

    def inverse(
        self, geometry: Geometry, height: int, width: int
    ) -> tuple[Float[Array, "batch 2 2"], Float[Array, "batch 2"]]:
        """The inverse affine map, without flips: ``p -> matrix p + shift`` is the source of pixel p."""
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
    return jnp.stack([jnp.stack([cos, -sin], 1), jnp.stack([sin, cos], 1)], 1)


def _diagonal(x: Float[Array, "batch"], y: Float[Array, "batch"]) -> Float[Array, "batch 2 2"]:
    return jnp.stack([x, y], 1)[:, :, None] * jnp.eye(2)[None]


def _product(*matrices: Float[Array, "batch 2 2"]) -> Float[Array, "batch 2 2"]:
    """Matrix product in full float32: the default precision of matrix units would shift pixels."""
    product = matrices[0]
    for matrix in matrices[1:]:
        product = jnp.sum(product[:, :, :, None] * matrix[:, None, :, :], axis=2)
    return product
