"""The end of another grid: where sampling starts that begins with an image, not with noise."""

import dataclasses

from jaxdiff.errors import UserError, require
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import Grid, TimePath
from jaxdiff.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Truncated:
    """The last times of a grid: so many steps of it are taken, and the others are not.

    Attributes:
      grid: one that only falls.
      share: of its times, above 0 and up to 1; at least one is left.
    """

    grid: Grid
    share: float

    def __post_init__(self):
        require(0 < self.share <= 1, "share", self.share, "it is a share of the steps", "give 0 < share <= 1")

    def __call__(self, process: Process, steps: int) -> Float[Array, "times"]:
        times = self.grid(process, steps)
        if isinstance(times, TimePath):
            fix = "choose one that only falls, such as Uniform"
            raise UserError(f"sampling.grid={self.grid!r}: it has no single end. Fix: {fix}")
        return times[-max(1, round(self.share * len(times))) :]
