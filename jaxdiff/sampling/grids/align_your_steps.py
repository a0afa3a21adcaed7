"""Align Your Steps: noise levels that were optimised for published models."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import expect
from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Array, Float

STABLE_DIFFUSION = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
STABLE_VIDEO = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


@dataclasses.dataclass(frozen=True)
class AlignYourSteps:
    """Published noise levels ``sigma / alpha``, interpolated to any number of steps (Sabour et al. 2024, section 4).

    Their logarithm is linear between neighbours. N steps use N + 1 levels, the last of which is replaced by the jump
    to clean data: ten steps visit the first ten of the lists here.

    Attributes:
      levels: decreasing; the lists of the paper are the constants of this module.
    """

    levels: tuple[float, ...] = STABLE_DIFFUSION

    def __post_init__(self):
        decreasing = len(self.levels) > 1 and all(np.diff(self.levels) < 0) and self.levels[-1] > 0
        expect(decreasing, "levels", self.levels, "at least two decreasing numbers > 0", "sort them")

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        positions = np.linspace(0, len(self.levels) - 1, steps + 1)[:-1]
        log_level = np.interp(positions, np.arange(len(self.levels)), np.log(self.levels))
        return process.time(jnp.asarray(-2 * log_level))
