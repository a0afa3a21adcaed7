"""Image embeddings: images, diffused as the vectors of a frozen encoder such as CLIP's (Ramesh et al. 2022)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict

from jaxdiff.codecs.identity import Identity
from jaxdiff.codecs.protocol import Shape
from jaxdiff.errors import UserError, expect, finite
from jaxdiff.models.clip_vision import ClipVisionEncoder, clip_pixels
from jaxdiff.models.dual_encoder import unit
from jaxdiff.typing import Array, Keys, Params, Stored, Weights

NAME = "image_encoder"
"""The name of the encoder among a task's frozen networks."""


@dataclasses.dataclass(frozen=True)
class ImageEmbedding(Identity):
    """Unit vectors of images, standardised: ``x_0 = (v - mean) / std``; a sample is an embedding, not an image.

    Without statistics the data are ``sqrt(width) v``, whose mean square is 1.

    Attributes:
      network: the encoder.
      weights: the origin of its parameters, such as ``RunWeights("runs/clip", module="image")``.
      mean, std: of each channel of the unit vectors, see `statistics`; give both, or neither.
    """

    precomputed_by: ClassVar[tuple[str, ...]] = ("network",)

    network: ClipVisionEncoder
    weights: Weights
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self):
        finite(self, "mean", "std")
        width = self.network.projection
        expect(
            (self.mean is None) == (self.std is None),
            "std",
            self.std,
            "mean and std",
            "give both, or neither",
        )
        for name in ("mean", "std"):
            numbers, fix = getattr(self, name), f"give {width} numbers"
            fits = numbers is None or len(numbers) == width
            expect(fits, name, numbers, f"a number for each of {width} channels", fix)
        expect(
            self.std is None or min(self.std) > 0,
            "std",
            self.std,
            "numbers > 0",
            "leave out constant channels",
        )

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return FrozenDict({NAME: self.weights})

    def frozen_shapes(self) -> Mapping[str, Params]:
        side = self.network.image_size
        pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return {NAME: nn.meta.unbox(jax.eval_shape(self.network.init, jax.random.key(0), pixels))["params"]}

    def data_shape(self, stored_shape: Shape) -> Shape:
        fits = len(stored_shape) == 3 and stored_shape[-1] == 3
        expect(fits, "image_shape", stored_shape, "(height, width, 3) of an image", "give the images' shape")
        return (self.network.projection,)

    def example(self, batch: int, stored_shape: Shape) -> np.ndarray:
        return np.zeros((batch, *stored_shape), np.uint8)

    def encode(self, frozen: Mapping[str, Params], stored: Stored, keys: Keys) -> Array:
        """Standardised vectors [batch, width] of images uint8, or of embeddings that are given [batch, width]."""
        return self.scaled(unit(self.precompute(frozen, stored)))

    def precompute(self, frozen: Mapping[str, Params], stored: Stored) -> Array:
        """The encoder's vectors [batch, width], not yet of unit length. Given vectors stay as they are."""
        if stored.ndim == 2:
            return stored.astype(jnp.float32)
        pixels = clip_pixels(stored.astype(jnp.float32) / 255, self.network.image_size)
        return self.network.apply({"params": frozen[NAME]}, pixels).vector

    def decode(self, frozen: Mapping[str, Params], x_0: Array) -> Array:
        """Unit vectors [batch, width] of data."""
        return unit(self.unscaled(x_0.astype(jnp.float32)))

    def scaled(self, vectors: Array) -> Array:
        """The data of unit vectors."""
        if self.mean is None:
            return math.sqrt(self.network.projection) * vectors
        return (vectors - self._row(self.mean)) / self._row(self.std)

    def unscaled(self, x_0: Array) -> Array:
        """The inverse of `scaled`."""
        if self.mean is None:
            return x_0 / math.sqrt(self.network.projection)
        return x_0 * self._row(self.std) + self._row(self.mean)

    def checked(self, name: str, stored: Any) -> np.ndarray:
        array = np.asarray(stored)
        if array.dtype != np.uint8:
            given = f"{name}={array.dtype}{list(array.shape)}"
            raise UserError(f"{given}: expected images uint8, got {array.dtype}. Fix: give uint8 images")
        return array

    @staticmethod
    def _row(numbers: Any) -> Array:
        return jnp.asarray(numbers, jnp.float32)[None]


def statistics(vectors: np.ndarray) -> dict[str, tuple[float, ...]]:
    """The fields `mean` and `std` of an `ImageEmbedding`, from unit vectors [n, width] of training images."""
    rows = np.asarray(vectors, np.float64)
    return {"mean": tuple(rows.mean(axis=0).tolist()), "std": tuple(rows.std(axis=0).tolist())}
