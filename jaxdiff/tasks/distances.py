"""Distances: the size of an error, one number for each example."""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from jaxdiff.errors import positive
from jaxdiff.process.per_example import mean_per_example, sum_per_example
from jaxdiff.typing import Array, Data, Float


@runtime_checkable
class Distance(Protocol):
    """The size of the error of each example."""

    def __call__(self, error: Data) -> Float[Array, "batch"]: ...


@dataclasses.dataclass(frozen=True)
class Squared(Distance):
    """Mean squared error: the distance whose best prediction is the posterior mean."""

    def __call__(self, error: Data) -> Float[Array, "batch"]:
        return mean_per_example(jnp.square(error))


@dataclasses.dataclass(frozen=True)
class PseudoHuber(Distance):
    """``sqrt(|e|^2 + c^2) - c``, with the norm over all values of an example (Song & Dhariwal 2023, section 3.3).

    Quadratic for errors well below c and linear above, so outliers weigh less. Its best prediction is not the mean.

    Attributes:
      c: the error at which it turns; ``0.00054 sqrt(d)`` for examples of d values if None, as in the paper.
    """

    c: float | None = None

    def __post_init__(self):
        positive(self, "c")

    def __call__(self, error: Data) -> Float[Array, "batch"]:
        c = 0.00054 * math.sqrt(math.prod(error.shape[1:])) if self.c is None else self.c
        square = sum_per_example(jnp.square(error))
        # sqrt(square + c^2) - c, in a form that does not cancel for errors well below c.
        return square / (jnp.sqrt(square + c**2) + c)
