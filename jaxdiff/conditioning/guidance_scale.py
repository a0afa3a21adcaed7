"""The guidance scale as a condition, for models that have learned guidance."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.condition import Shape
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.nulls import Null
from jaxdiff.errors import between, expect, positive
from jaxdiff.typing import Array, Keys


class GuidanceScale(Continuous):
    """Guidance scale: the scale of classifier-free guidance that the model's one call has (Meng et al. 2023; for flow
    maps Geng et al. 2025, "Improved mean flows").

    In training every example has a scale of its own, which the objective reads: log-uniform from `low` to `high`. In
    sampling it is a value like that of other conditions.

    Attributes:
      size, width, frequencies, null: as in `Continuous`; one number without a null, so that it is always shown.
      default: the scale of samples for which none is given.
      low, high: the smallest and the largest scale.
    """

    size: int | None = None
    width: int | None = None
    frequencies: int = 16
    default: float | tuple[float, ...] | None = 1.0
    null: Null = "none"
    low: float = 1.0
    high: float = 8.0

    def __post_init__(self):
        expect(self.size is None, "size", self.size, "None, since a scale is one number", "leave it out")
        positive(self, "low", "high")
        ordered = self.low < self.high
        expect(ordered, "high", self.high, f"a scale above low={self.low}", "exchange them")
        between(self, "default", self.low, self.high)
        super().__post_init__()

    @nn.nowrap
    def draw(self, values: Array, keys: Keys, train: bool) -> Array:
        if not train:
            return values
        return self.low * (self.high / self.low) ** jax.vmap(jax.random.uniform)(keys)

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Array:
        return jnp.full((batch,), self.low)

    @nn.nowrap
    def check(self, values: object, name: str = "scale") -> None:
        """Raise `UserError` unless there is a scale within training's range for each image."""
        super().check(values, name)
        scales = np.asarray(values).ravel()
        outside = scales[~((scales >= self.low) & (scales <= self.high))].tolist()
        expected = f"scales in [{self.low:g}, {self.high:g}], as in training"
        expect(not outside, name, outside[0] if outside else None, expected, "choose one there")
