"""Conditions that act on every pixel alike, through the adaptive norms."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, require
from jaxdiff.models.layers import Dense, embedding_init
from jaxdiff.typing import Array, Bool, Float


class NoiseLevel(nn.Module):
    """Sinusoids of the noise label, then two dense layers (Ho et al. 2020; Dhariwal & Nichol 2021).

    Attributes:
      width: length of the vector; four times the network's first width in the papers.
      frequencies: number of sine and cosine pairs; ``width // 8`` if None, as in the papers.
      max_period: of the slowest sinusoid, as a multiple of 2 pi in the label.
      endpoint: whether the slowest sinusoid has exactly that period (DDPM), or the one after it would (ADM).
      sine_first: sines before cosines.
    """

    width: int
    frequencies: int | None = None
    max_period: float = 10000.0
    endpoint: bool = False
    sine_first: bool = False

    def __post_init__(self):
        require(self.width > 0, "width", self.width, "a vector needs at least one number", "try 256")
        require(self._frequencies() > int(self.endpoint), "frequencies", self.frequencies,
                "there are too few sinusoids", "give frequencies or a larger width")  # fmt: skip
        require(self.max_period > 1, "max_period", self.max_period, "it is the longest period", "try 10000.0")
        super().__post_init__()

    @nn.compact
    def __call__(self, noise_label: Float[Array, "batch"]) -> Embeddings:
        # Float32 throughout: labels near 1000 have three digits before the point; bfloat16 keeps two.
        waves = sinusoids(noise_label, self._frequencies(), self.max_period, self.endpoint, self.sine_first)
        hidden = jax.nn.silu(Dense(self.width, name="dense_0")(waves))
        return Embeddings(vector=Dense(self.width, name="dense_1")(hidden))

    @nn.nowrap
    def _frequencies(self) -> int:
        return self.width // 8 if self.frequencies is None else self.frequencies


class ClassLabel(nn.Module):
    """A learned vector for each class, and one for no class.

    The vectors start as N(0, 1), as in ADM. The null is a parameter of its own: no label can reach it.

    Attributes:
      num_classes: labels are 0 to num_classes - 1.
      width: length of the vector.
      drop_rate: how often training shows the null (Ho & Salimans 2022).
    """

    num_classes: int
    width: int
    drop_rate: float = 0.1

    def __post_init__(self):
        require(self.num_classes > 0, "num_classes", self.num_classes, "there is no class", "give at least 1")
        require(self.width > 0, "width", self.width, "a vector needs at least one number", "try 256")
        require(0 <= self.drop_rate < 1, "drop_rate", self.drop_rate, "it is outside [0, 1)", "try 0.1")
        super().__post_init__()

    @nn.compact
    def __call__(self, labels: Int[Array, "batch"], drop: Bool[Array, "batch"]) -> Embeddings:
        table = self.param("table", embedding_init(), (self.num_classes, self.width))
        null = self.param("null", embedding_init(), (1, self.width))
        # A label out of range becomes NaN, never another class: -1 would read the last row.
        rows = jnp.where(labels < 0, self.num_classes, labels)
        vectors = jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)
        return Embeddings(vector=jnp.where(drop[:, None], null, vectors))

    @nn.nowrap
    def example(self, batch: int) -> Int[Array, "batch"]:
        return jnp.zeros((batch,), jnp.int32)

    @nn.nowrap
    def check(self, labels: object, name: str = "label") -> None:
        """Raise `UserError` unless all labels are integers in range."""
        values = np.asarray(labels)
        fix = f"give integers from 0 to {self.num_classes - 1}"
        if not np.issubdtype(values.dtype, np.integer):
            raise UserError(f"{name}={_first(values)}: a class is an integer, not {values.dtype}. Fix: {fix}")
        wrong = values[(values < 0) | (values >= self.num_classes)]
        if wrong.size:
            raise UserError(f"{name}={wrong[0]}: classes are 0 to {self.num_classes - 1}. Fix: {fix}")


def sinusoids(
    labels: Float[Array, "batch"],
    frequencies: int,
    max_period: float = 10000.0,
    endpoint: bool = False,
    sine_first: bool = False,
) -> Float[Array, "batch waves"]:
    """Cosines and sines of ``label max_period^(-i / n)``; n = frequencies, less one with `endpoint`."""
    exponent = jnp.arange(frequencies, dtype=labels.dtype) / (frequencies - int(endpoint))
    angles = jnp.outer(labels, jnp.exp(-math.log(max_period) * exponent))
    waves = (jnp.sin(angles), jnp.cos(angles)) if sine_first else (jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(waves, axis=-1)


def _first(values: np.ndarray) -> object:
    return values.flat[0] if values.size else "[]"
