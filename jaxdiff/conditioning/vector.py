"""Conditions that act on every pixel alike, through the adaptive norms: the noise level and the class."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.nulls import Null
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, require
from jaxdiff.models.layers import HIGHEST, Dense, embedding_init
from jaxdiff.typing import Array, Bool, Float


class NoiseLevel(nn.Module):
    """Waves of the noise label, then two dense layers (Ho et al. 2020; Dhariwal & Nichol 2021; Song et al. 2021).

    ``dense_1(silu(dense_0(waves + features)))``: the activation that follows is the network's. Conditions that come
    before the mapping (`Embeddings.features`) are added to the waves, the others to the vector.

    Attributes:
      width: length of the vector; four times the network's first width in the papers.
      frequencies: number of sine and cosine pairs; ``width // 8`` if None, as in the papers.
      max_period: of the slowest sinusoid, as a multiple of 2 pi in the label.
      endpoint: whether the slowest sinusoid has exactly that period (DDPM), or the one after it would (ADM).
      sine_first: sines before cosines.
      random_scale: standard deviation of random frequencies, in turns per unit of the label, in place of those up to
        `max_period`; 16 in NCSN++. They are drawn once and never move.
    """

    width: int
    frequencies: int | None = None
    max_period: float = 10000.0
    endpoint: bool = False
    sine_first: bool = False
    random_scale: float | None = None

    def __post_init__(self):
        require(self.width > 0, "width", self.width, "a vector needs at least one number", "try 256")
        require(self._frequencies() > int(self.endpoint), "frequencies", self.frequencies,
                "there are too few sinusoids", "give frequencies or a larger width")  # fmt: skip
        require(self.max_period > 1, "max_period", self.max_period, "it is the longest period", "try 10000.0")
        require(self.random_scale is None or self.random_scale > 0, "random_scale", self.random_scale,
                "it is a standard deviation", "try 16.0, or None")  # fmt: skip
        super().__post_init__()

    @nn.compact
    def __call__(
        self, noise_label: Float[Array, "batch"], features: Float[Array, "batch waves"] | None = None
    ) -> Embeddings:
        # Float32 throughout: labels near 1000 have three digits before the point; bfloat16 keeps two.
        waves = self._waves(noise_label)
        if features is not None:
            size, expected = features.shape[-1], waves.shape[-1]
            require(size == expected, "width", size, f"it is added to {expected} features of the noise level",
                    f"give {expected} to conditions before the mapping")  # fmt: skip
            waves = waves + features
        hidden = jax.nn.silu(Dense(self.width, name="dense_0")(waves))
        return Embeddings(vector=Dense(self.width, name="dense_1")(hidden))

    def _waves(self, noise_label: Float[Array, "batch"]) -> Float[Array, "batch waves"]:
        count = self._frequencies()
        if self.random_scale is None:
            return sinusoids(noise_label, count, self.max_period, self.endpoint, self.sine_first)
        drawn = self.param("frequencies", nn.initializers.normal(self.random_scale), (count,))
        return _waves(noise_label, 2 * math.pi * jax.lax.stop_gradient(drawn), self.sine_first)

    @nn.nowrap
    def _frequencies(self) -> int:
        return self.width // 8 if self.frequencies is None else self.frequencies


class ClassLabel(nn.Module):
    """A learned vector for each class, and one for no class.

    The vectors start as N(0, 1), as in ADM. A learned null is a parameter of its own: no label can reach it. Labels are
    integers [batch], or rows of weights [batch, num_classes] for mixtures of classes, such as one-hot rows.

    Attributes:
      num_classes: labels are 0 to num_classes - 1.
      width: length of the vector.
      drop_rate: how often training shows the null (Ho & Salimans 2022).
      null: what no class looks like, see `Null`.
      bias: is added to the vector of every class, and to the null.
      before_mapping: joined to the features of the noise level before they are mapped (DDPM++), not after (ADM).
      scale: factor of the table, whose rows start as much smaller; the root of `num_classes` in EDM's DDPM++.
    """

    num_classes: int
    width: int
    drop_rate: float = 0.1
    null: Null = "learned"
    bias: bool = False
    before_mapping: bool = False
    scale: float = 1.0

    def __post_init__(self):
        require(self.num_classes > 0, "num_classes", self.num_classes, "there is no class", "give at least 1")
        require(self.width > 0, "width", self.width, "a vector needs at least one number", "try 256")
        nulls.check(self.null, self.drop_rate)
        require(
            self.scale > 0, "scale", self.scale, "the vector would not say the class", "give a number > 0"
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, labels: Int[Array, "batch"] | Float[Array, "batch classes"], drop: Bool[Array, "batch"]
    ) -> Embeddings:
        shape = (self.num_classes, self.width)
        table: Any = self.param("table", embedding_init(1 / self.scale), shape)
        table = table if self.scale == 1 else self.scale * table
        if labels.ndim == 1:
            # A label out of range becomes NaN, never another class: -1 would read the last row.
            rows = jnp.where(labels < 0, self.num_classes, labels)
            vectors = jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)
        else:
            vectors = jnp.matmul(labels, table, precision=HIGHEST)
        vectors = nulls.instead(self, vectors, drop, embedding_init())
        if self.bias:
            vectors = vectors + self.param("bias", nn.initializers.zeros, (self.width,))[None]
        return vector_or_features(vectors, self.before_mapping)

    @nn.nowrap
    def example(self, batch: int, image_shape: tuple[int, int, int] | None = None) -> Int[Array, "batch"]:
        return jnp.zeros((batch,), jnp.int32)

    @nn.nowrap
    def check(self, labels: object, name: str = "label") -> None:
        """Raise `UserError` unless all labels are integers in range, or rows of weights that add up to 1."""
        values = np.asarray(labels)
        if np.issubdtype(values.dtype, np.floating) and values.ndim == 2:
            fits = values.shape[1] == self.num_classes and np.all(values >= 0)
            fits = fits and np.allclose(np.sum(values, axis=1), 1, atol=1e-3)
            if not fits:
                fix = f"give weights [n, {self.num_classes}] that add up to 1, or None for no class"
                raise UserError(f"{name}: rows {values.shape} are no mixtures of classes. Fix: {fix}")
            return
        fix = f"give integers from 0 to {self.num_classes - 1}"
        if not np.issubdtype(values.dtype, np.integer):
            raise UserError(f"{name}={_first(values)}: a class is an integer, not {values.dtype}. Fix: {fix}")
        require(values.ndim == 1, name, list(values.shape), "there is one class for each image", fix)
        wrong = values[(values < 0) | (values >= self.num_classes)]
        if wrong.size:
            raise UserError(f"{name}={wrong[0]}: classes are 0 to {self.num_classes - 1}. Fix: {fix}")


def vector_or_features(values: Float[Array, "batch width"], before_mapping: bool) -> Embeddings:
    """In the slot of what drives the norms, or of what is mapped to it together with the noise level."""
    return Embeddings(features=values) if before_mapping else Embeddings(vector=values)


def sinusoids(
    labels: Float[Array, "batch"],
    frequencies: int,
    max_period: float = 10000.0,
    endpoint: bool = False,
    sine_first: bool = False,
) -> Float[Array, "batch waves"]:
    """Cosines and sines of ``label max_period^(-i / n)``; n = frequencies, less one with `endpoint`."""
    exponent = jnp.arange(frequencies, dtype=labels.dtype) / (frequencies - int(endpoint))
    return _waves(labels, jnp.exp(-math.log(max_period) * exponent), sine_first)


def _waves(labels: Float[Array, "batch"], rates: Float[Array, "frequencies"], sine_first: bool) -> Array:
    angles = jnp.outer(labels, rates)
    waves = (jnp.sin(angles), jnp.cos(angles)) if sine_first else (jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(waves, axis=-1)


def _first(values: np.ndarray) -> object:
    return values.flat[0] if values.size else "[]"
