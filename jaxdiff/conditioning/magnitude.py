"""Vectors of unit variance, for the magnitude-preserving networks of EDM2 (Karras et al. 2024, figure 21).

A `Conditioner` adds vectors up. The paper's magnitude-preserving sum of them is the same sum with factors whose squares
add up to 1: `scale` is the factor of a condition. Noise level and class in equal parts have ``2 ** -0.5`` each. The
activation that follows the sum belongs to the network.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.conditioning.label import LabelCondition
from jaxdiff.conditioning.nulls import Null
from jaxdiff.conditioning.vector import rows_of_classes
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import between, positive
from jaxdiff.models.magnitude import MagnitudeDense, MagnitudeFourier, normalize, unit_init
from jaxdiff.typing import Array, Bool, Float


class MagnitudeNoiseLevel(nn.Module):
    """Magnitude-preserving noise level: random Fourier features of the noise label, then a magnitude-preserving layer.

    Attributes:
      width: length of the vector; the largest width of a level in the paper.
      frequencies: number of features; the width of the first level in the paper.
      bandwidth: standard deviation of the frequencies, in turns per unit of the label.
      scale: factor in the sum of vectors; 1 without conditions.
    """

    width: int
    frequencies: int
    bandwidth: float = 1.0
    scale: float = 1.0

    def __post_init__(self):
        positive(self, "width", "frequencies", "bandwidth", "scale")
        super().__post_init__()

    @nn.compact
    def __call__(self, noise_label: Float[Array, "batch"]) -> Embeddings:
        features = MagnitudeFourier(self.frequencies, self.bandwidth, name="fourier")(noise_label)
        return Embeddings(vector=self.scale * MagnitudeDense(self.width, name="linear")(features))


class MagnitudeClassLabel(LabelCondition):
    """Magnitude-preserving class label: a magnitude-preserving layer over ``sqrt(num_classes)`` times a one-hot vector.

    The result is a row of the layer's normalised weights. The null is the vector 0, so nothing is learned for it alone.

    Attributes:
      num_classes: labels are 0 to num_classes - 1.
      width: length of the vector.
      drop_rate: probability of showing the null in training. The paper's models have 0 and use autoguidance.
      scale: factor in the sum of vectors.
    """

    null: ClassVar[Null] = "zero"

    num_classes: int
    width: int
    drop_rate: float = 0.0
    scale: float = 2**-0.5

    def __post_init__(self):
        positive(self, "num_classes", "width", "scale")
        between(self, "drop_rate", 0.0, 1.0, open_high=True)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, values: Int[Array, "batch"] | Float[Array, "batch classes"], drop: Bool[Array, "batch"]
    ) -> Embeddings:
        init = nn.with_logical_partitioning(unit_init, (None, "embed"))
        weight: Any = self.param("weight", init, (self.num_classes, self.width))
        vectors = rows_of_classes(normalize(weight, 0), values)
        return Embeddings(vector=jnp.where(drop[:, None], 0.0, self.scale * vectors))
