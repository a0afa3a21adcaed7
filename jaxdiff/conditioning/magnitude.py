"""Vectors of unit variance, for the magnitude-preserving networks of EDM2 (Karras et al. 2024, figure 21).

A `Conditioner` adds vectors up. The paper's magnitude-preserving sum of them is the same sum with factors whose squares
add up to 1: `scale` is a part's factor. Noise level and class in equal shares have ``2 ** -0.5`` each. The activation
that follows the sum is the network's.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.conditioning.vector import ClassLabel
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import require
from jaxdiff.models.layers import HIGHEST
from jaxdiff.models.magnitude import MagnitudeDense, MagnitudeFourier, normalize, unit_init
from jaxdiff.typing import Array, Bool, Float


class MagnitudeNoiseLevel(nn.Module):
    """Random Fourier features of the noise label, then a magnitude-preserving layer.

    Attributes:
      width: length of the vector; the largest width of a level in the paper.
      frequencies: number of features; the width of the first level in the paper.
      bandwidth: standard deviation of the frequencies, in turns per unit of the label.
      scale: the factor of this part in the sum of vectors; 1 if it is the only one.
    """

    width: int
    frequencies: int
    bandwidth: float = 1.0
    scale: float = 1.0

    def __post_init__(self):
        require(self.width > 0, "width", self.width, "a vector needs at least one number", "try 256")
        for name in ("frequencies", "bandwidth", "scale"):
            value = getattr(self, name)
            require(value > 0, name, value, "the vector would not say the level", "give a number > 0")
        super().__post_init__()

    @nn.compact
    def __call__(self, noise_label: Float[Array, "batch"]) -> Embeddings:
        waves = MagnitudeFourier(self.frequencies, self.bandwidth, name="fourier")(noise_label)
        return Embeddings(vector=self.scale * MagnitudeDense(self.width, name="linear")(waves))


class MagnitudeClassLabel(nn.Module):
    """A vector for each class, by a magnitude-preserving layer over ``sqrt(num_classes)`` times its unit vector.

    That is a row of the layer's normalised weights. No class is the vector 0: nothing is learned for it alone.

    Attributes:
      num_classes: labels are 0 to num_classes - 1.
      width: length of the vector.
      drop_rate: how often training shows no class. The paper's models never do, and are guided by another model.
      scale: the factor of this part in the sum of vectors.
    """

    num_classes: int
    width: int
    drop_rate: float = 0.0
    scale: float = 2**-0.5

    def __post_init__(self):
        require(self.num_classes > 0, "num_classes", self.num_classes, "there is no class", "give at least 1")
        require(self.width > 0, "width", self.width, "a vector needs at least one number", "try 256")
        require(0 <= self.drop_rate < 1, "drop_rate", self.drop_rate, "it is outside [0, 1)", "try 0.1")
        require(
            self.scale > 0, "scale", self.scale, "the vector would not say the class", "give a number > 0"
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, labels: Int[Array, "batch"] | Float[Array, "batch classes"], drop: Bool[Array, "batch"]
    ) -> Embeddings:
        init = nn.with_logical_partitioning(unit_init, (None, "embed"))
        weight: Any = self.param("weight", init, (self.num_classes, self.width))
        table = normalize(weight, 0)
        if labels.ndim == 1:
            # A label out of range becomes NaN, never another class: -1 would read the last row.
            rows = jnp.where(labels < 0, self.num_classes, labels)
            vectors = jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)
        else:
            vectors = jnp.matmul(labels, table, precision=HIGHEST)
        return Embeddings(vector=jnp.where(drop[:, None], 0.0, self.scale * vectors))

    @nn.nowrap
    def example(self, batch: int, image_shape: tuple[int, int, int] | None = None) -> Int[Array, "batch"]:
        return jnp.zeros((batch,), jnp.int32)

    @nn.nowrap
    def check(self, labels: object, name: str = "label") -> None:
        """Raise `UserError` unless the labels are what `ClassLabel` takes."""
        ClassLabel(self.num_classes, self.width).check(labels, name)
