"""Vector conditions, which drive the adaptive norms: the noise level and the class label."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.label import LabelCondition
from jaxdiff.conditioning.nulls import Null
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import expect, positive
from jaxdiff.models.group_norm import statistics_dtype
from jaxdiff.models.layers import HIGHEST, Dense, embedding_init
from jaxdiff.typing import Array, Bool, Float


class NoiseLevel(nn.Module):
    """Noise level: Fourier features of the noise label, then two dense layers (Ho et al. 2020; Dhariwal & Nichol 2021;
    Song et al. 2021).

    ``dense_1(silu(dense_0(fourier + features)))``; the activation that follows belongs to the network. Conditions that
    come before the mapping (`Embeddings.features`) are added to the Fourier features, the others to the vector.

    Attributes:
      width: length of the vector; four times the network's first width in the papers.
      frequencies: number of sine and cosine pairs; ``width // 8`` if None, as in the papers.
      max_period: period of the slowest sinusoid, as a multiple of 2 pi in the label.
      endpoint: whether the slowest sinusoid has exactly that period (DDPM), or the next one would (ADM).
      sine_first: sines before cosines.
      random_scale: standard deviation of random frequencies, in turns per unit of the label, instead of those up to
        `max_period`; 16 in NCSN++. They are drawn once and not trained.
    """

    width: int
    frequencies: int | None = None
    max_period: float = 10000.0
    endpoint: bool = False
    sine_first: bool = False
    random_scale: float | None = None

    def __post_init__(self):
        positive(self, "width", "random_scale")
        expect(
            self._frequencies() > int(self.endpoint), "frequencies", self.frequencies,
            f"more than {int(self.endpoint)}", "give frequencies, or a larger width", str(self._frequencies()),
        )  # fmt: skip
        expect(self.max_period > 1, "max_period", self.max_period, "a number > 1", "try 10000.0")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, noise_label: Float[Array, "batch"], features: Float[Array, "batch channels"] | None = None
    ) -> Embeddings:
        # Float32 throughout: labels near 1000 have three digits before the point; bfloat16 keeps two.
        fourier = self._fourier_features(noise_label)
        if features is not None:
            size, expected = features.shape[-1], fourier.shape[-1]
            expect(
                size == expected,
                "width",
                size,
                f"{expected}, the number of Fourier features of the noise level",
                f"use width={expected} in conditions with before_mapping=True",
            )
            fourier = fourier + features
        hidden = jax.nn.silu(Dense(self.width, name="dense_0")(fourier))
        return Embeddings(vector=Dense(self.width, name="dense_1")(hidden))

    def _fourier_features(self, noise_label: Float[Array, "batch"]) -> Float[Array, "batch channels"]:
        count = self._frequencies()
        if self.random_scale is None:
            return fourier_features(noise_label, count, self.max_period, self.endpoint, self.sine_first)
        drawn = self.param("frequencies", nn.initializers.normal(self.random_scale), (count,))
        return _fourier(noise_label, 2 * math.pi * jax.lax.stop_gradient(drawn), self.sine_first)

    @nn.nowrap
    def _frequencies(self) -> int:
        return self.width // 8 if self.frequencies is None else self.frequencies


class Sinusoid(nn.Module):
    """Noise level as its Fourier features, without layers: the sinusoid of a level in Stable unCLIP.

    Attributes:
      frequencies: number of sine and cosine pairs.
      max_period: period of the slowest sinusoid, as a multiple of 2 pi in the label; the next one would have it.
    """

    frequencies: int
    max_period: float = 10000.0

    def __post_init__(self):
        positive(self, "frequencies")
        expect(self.max_period > 1, "max_period", self.max_period, "a number > 1", "try 10000.0")
        super().__post_init__()

    def __call__(self, noise_label: Float[Array, "batch"]) -> Embeddings:
        return Embeddings(vector=fourier_features(noise_label, self.frequencies, self.max_period))


class StepTable(nn.Module):
    """Noise level of a discrete model as a learned vector for each step, such as that of the small image in Stable
    Diffusion's x4 upscaler.

    Attributes:
      steps: number of steps of the model.
      width: length of the vector.
    """

    steps: int
    width: int

    def __post_init__(self):
        positive(self, "steps", "width")
        super().__post_init__()

    @nn.compact
    def __call__(self, noise_label: Float[Array, "batch"]) -> Embeddings:
        """The vector of the step nearest to a `StepIndex`; that of the first for less noise, NaN for more than all."""
        table: Any = self.param("table", embedding_init(), (self.steps, self.width))
        step = jnp.maximum(jnp.round(noise_label), 0).astype(jnp.int32)
        return Embeddings(vector=rows_of_classes(table, step))


class VectorMlp(nn.Module):
    """Two dense layers: ``dense_1(silu(dense_0(x)))``, such as the mapping of SDXL's concatenated vectors.

    Attributes:
      width: length of the hidden and of the output vector.
    """

    width: int

    def __post_init__(self):
        positive(self, "width")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "batch channels"]) -> Float[Array, "batch width"]:
        hidden = jax.nn.silu(Dense(self.width, name="dense_0")(x))
        return Dense(self.width, name="dense_1")(hidden)


class ClassLabel(LabelCondition):
    """Class label: a learned vector for each class, and one for the null.

    The vectors start as N(0, 1), as in ADM. A learned null is a parameter of its own, which no label can select.

    Attributes:
      num_classes: labels are 0 to num_classes - 1.
      width: length of the vector.
      drop_rate: probability of showing the null in training (Ho & Salimans 2022).
      null: the vector without a class, see `Null`.
      bias: whether a learned bias is added to the vector of every class, and to the null.
      before_mapping: added to the Fourier features of the noise level before their mapping (DDPM++), not after (ADM).
      scale: factor of the table, whose rows start smaller by as much; ``sqrt(num_classes)`` in EDM's DDPM++.
    """

    num_classes: int
    width: int
    drop_rate: float = 0.1
    null: Null = "learned"
    bias: bool = False
    before_mapping: bool = False
    scale: float = 1.0

    def __post_init__(self):
        positive(self, "num_classes", "width", "scale")
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, values: Int[Array, "batch"] | Float[Array, "batch classes"], drop: Bool[Array, "batch"]
    ) -> Embeddings:
        shape = (self.num_classes, self.width)
        table: Any = self.param("table", embedding_init(1 / self.scale), shape)
        table = table if self.scale == 1 else self.scale * table.astype(statistics_dtype(table))
        vectors = rows_of_classes(table, values)
        vectors = nulls.replace_dropped(self, self.null, vectors, drop, embedding_init())
        if self.bias:
            vectors = vectors + self.param("bias", nn.initializers.zeros, (self.width,))[None]
        return vector_or_features(vectors, self.before_mapping)


def rows_of_classes(
    table: Float[Array, "classes width"], labels: Int[Array, "batch"] | Float[Array, "batch classes"]
) -> Float[Array, "batch width"]:
    """The row of each class, or the weighted sums of rows, in float32 at least. A label out of range gives NaN."""
    if labels.ndim == 1:
        # NaN, never another class: -1 would read the last row.
        rows = jnp.where(labels < 0, table.shape[0], labels)
        found = jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)
        return found.astype(statistics_dtype(found))
    return jnp.matmul(labels, table, precision=HIGHEST)


def vector_or_features(values: Float[Array, "batch width"], before_mapping: bool) -> Embeddings:
    """As `vector`, or as `features`, which are added to the Fourier features of the noise level before its mapping."""
    return Embeddings(features=values) if before_mapping else Embeddings(vector=values)


def fourier_features(
    values: Float[Array, "batch"],
    frequencies: int,
    max_period: float = 10000.0,
    endpoint: bool = False,
    sine_first: bool = False,
) -> Float[Array, "batch channels"]:
    """Cosines and sines of ``value max_period^(-i / n)``; n = frequencies, less one with `endpoint`."""
    exponent = jnp.arange(frequencies, dtype=values.dtype) / (frequencies - int(endpoint))
    return _fourier(values, jnp.exp(-math.log(max_period) * exponent), sine_first)


def _fourier(
    values: Float[Array, "batch"], frequencies: Float[Array, "frequencies"], sine_first: bool
) -> Float[Array, "batch channels"]:
    angles = jnp.outer(values, frequencies)
    pair = (jnp.sin(angles), jnp.cos(angles)) if sine_first else (jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(pair, axis=-1)
