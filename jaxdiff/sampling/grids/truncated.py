"""Truncated grids: the last part of another grid, for sampling that starts from a given image."""

import dataclasses

from jaxdiff.errors import between
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.grids.continuous import falling
from jaxdiff.sampling.protocols import Grid
from jaxdiff.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Truncated:
    """The last times of a grid; its first steps are skipped (SDEdit, Meng et al. 2022).

    Attributes:
      grid: a grid that only decreases.
      fraction: of its times, in (0, 1], rounded down as in diffusers; at least one is kept.
    """

    grid: Grid
    fraction: float

    def __post_init__(self):
        between(self, "fraction", 0.0, 1.0, open_low=True)

    def __call__(self, process: Process, steps: int) -> Float[Array, "times"]:
        times = falling(self.grid, process, steps)
        return times[-max(1, int(len(times) * self.fraction)) :]
