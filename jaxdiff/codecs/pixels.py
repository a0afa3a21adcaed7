"""Pixels: uint8 images, diffused as floats between -1 and 1."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from jaxdiff.codecs.protocol import Shape
from jaxdiff.data.images import to_float, to_uint8
from jaxdiff.errors import UserError, expect
from jaxdiff.typing import Array, Keys, Params, Stored, Weights

LEVELS = to_float(np.arange(256, dtype=np.uint8))
"""The float of each of the 256 levels, as the host computes it."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Linear scaling: 0..255 to -1..1, and back by rounding and clipping (Ho et al. 2020, section 3.3)."""

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return FrozenDict()

    def data_shape(self, stored_shape: Shape) -> Shape:
        fix = "give (height, width, channels), or another codec, such as Identity"
        expect(len(stored_shape) == 3, "image_shape", stored_shape, "three numbers", fix)
        return stored_shape

    def example(self, batch: int, stored_shape: Shape) -> np.ndarray:
        return np.zeros((batch, *stored_shape), np.uint8)

    def encode(self, frozen: Mapping[str, Params], stored: Stored, keys: Keys) -> Array:
        return to_floats(stored)

    def decode(self, frozen: Mapping[str, Params], x_0: Array) -> Array:
        return x_0

    def checked(self, name: str, stored: Any) -> np.ndarray:
        array = np.asarray(stored)
        if array.dtype != np.uint8:
            given = f"{name}={array.dtype}{list(array.shape)}"
            raise UserError(f"{given}: expected uint8, got {array.dtype}. Fix: give uint8 images")
        return array

    def stored(self, decoded: np.ndarray) -> np.ndarray:
        return to_uint8(decoded)


def to_floats(stored: Stored) -> Array:
    """Stored bytes as floats between -1 and 1; floats stay as they are."""
    if jnp.issubdtype(stored.dtype, jnp.floating):
        return stored
    return jax.lax.platform_dependent(stored, cpu=_by_table, default=scale_levels)


def _by_table(stored: Array) -> Array:
    """The host's floats, bit for bit: XLA multiplies by a reciprocal, which rounds the last bit differently."""
    return jnp.asarray(LEVELS)[stored]


def scale_levels(stored: Array) -> Array:
    """0..255 to -1..1, the host's floats up to the last bit: accelerators compute faster than they look up."""
    return stored.astype(jnp.float32) / 127.5 - 1
