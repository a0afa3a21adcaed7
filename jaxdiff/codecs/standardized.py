"""Standardised embeddings: diffused with zero mean and unit variance, by stored statistics (unCLIP's prior)."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from jaxdiff.codecs.identity import Identity
from jaxdiff.codecs.protocol import Shape
from jaxdiff.errors import expect, positive
from jaxdiff.typing import Array, Keys, Params, Stored, Weights

NAME = "statistics"
"""The name of the statistics among a task's frozen networks."""


@dataclasses.dataclass(frozen=True)
class Standardized(Identity):
    """Vectors minus a mean, over a standard deviation: ``clip_mean`` and ``clip_std`` of Karlo's prior.

    Attributes:
      weights: origin of the tree ``{"mean": [size], "std": [size]}``.
      size: length of the vectors.
    """

    weights: Weights
    size: int

    def __post_init__(self):
        positive(self, "size")

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return FrozenDict({NAME: self.weights})

    def frozen_shapes(self) -> Mapping[str, Params]:
        """The statistics as shapes."""
        return {NAME: {name: jax.ShapeDtypeStruct((self.size,), np.float32) for name in ("mean", "std")}}

    def data_shape(self, stored_shape: Shape) -> Shape:
        fix = "give the length of the vectors"
        expect(stored_shape == (self.size,), "image_shape", stored_shape, f"({self.size},)", fix)
        return stored_shape

    def encode(self, frozen: Mapping[str, Params], stored: Stored, keys: Keys) -> Array:
        return (stored.astype(jnp.float32) - frozen[NAME]["mean"][None]) / frozen[NAME]["std"][None]

    def decode(self, frozen: Mapping[str, Params], x_0: Array) -> Array:
        return x_0 * frozen[NAME]["std"][None] + frozen[NAME]["mean"][None]
