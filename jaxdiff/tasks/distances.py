"""How far an error is from none: one number for each image."""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.typing import Array, Float, Images


@runtime_checkable
class Distance(Protocol):
    """The size of the error of each image."""

    def __call__(self, error: Images) -> Float[Array, "batch"]: ...


@dataclasses.dataclass(frozen=True)
class Squared(Distance):
    """The mean of the squares: of all distances the one whose best prediction is the posterior mean."""

    def __call__(self, error: Images) -> Float[Array, "batch"]:
        return jnp.mean(jnp.square(error), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class PseudoHuber(Distance):
    """``sqrt(|e|^2 + c^2) - c``, with the norm of the whole image (Song & Dhariwal 2023, section 3.3).

    A square for errors well below c and a norm above, which outliers move less. Its best prediction is no mean.

    Attributes:
      c: where it turns; ``0.00054 sqrt(d)`` for images of d values if None, as in the paper.
    """

    c: float | None = None

    def __post_init__(self):
        require(
            self.c is None or self.c > 0, "c", self.c, "there is a corner at no error", "give a number > 0"
        )

    def __call__(self, error: Images) -> Float[Array, "batch"]:
        c = 0.00054 * math.sqrt(math.prod(error.shape[1:])) if self.c is None else self.c
        square = jnp.sum(jnp.square(error), axis=(1, 2, 3))
        # sqrt(square + c^2) - c, which would cancel for errors well below c.
        return square / (jnp.sqrt(square + c**2) + c)
