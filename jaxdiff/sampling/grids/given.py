"""A grid of given times, such as learned ones."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import expect
from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Given:
    """Times one by one, for one number of steps. `jaxdiff.learn_grid` writes such grids.

    Attributes:
      times: decreasing, in the time of the process; the jump to clean data follows the last one.
    """

    times: tuple[float, ...]

    def __post_init__(self):
        times = np.asarray(self.times)
        falls = times.ndim == 1 and times.size > 0 and bool(np.all(np.diff(times) < 0))
        fix = "sort them, and leave repeated ones out"
        expect(falls and bool(np.all(np.isfinite(times))), "times", self.times, "decreasing numbers", fix)

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        count = len(self.times)
        expect(steps == count, "steps", steps, f"{count}, for which the grid has times", f"use {count}")
        return jnp.asarray(self.times)
