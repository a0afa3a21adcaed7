"""Grids that return to noise: parts of another grid are gone through again, each time with fresh noise."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.grids.continuous import falling
from jaxdiff.sampling.loop import Grid, TimePath


@dataclasses.dataclass(frozen=True)
class Restart:
    """Down to s_min, then again and again up to s_max and down (Xu et al. 2023, "Restart Sampling", algorithm 1).

    The noise of each restart makes the errors of the steps before it forgotten.

    Attributes:
      base: the grid that is interrupted, at its noise level nearest to s_min (of those below s_max).
      s_min, s_max: the interval of noise levels ``sigma / alpha``.
      repeats: K, the number of restarts.
      steps: the steps of each restart, spaced as those of `Karras`.
      rho: of that spacing.
    """

    base: Grid
    s_min: float = 0.06
    s_max: float = 0.3
    repeats: int = 5
    steps: int = 3
    rho: float = 7.0

    def __post_init__(self):
        require(self.s_min > 0, "s_min", self.s_min, "a restart ends above clean data", "try 0.06")
        require(
            self.s_max > self.s_min, "s_max", self.s_max,
            f"it is not above s_min={self.s_min}", "give a larger number",
        )  # fmt: skip
        require(self.repeats >= 0, "repeats", self.repeats, "it is a count", "give 0 or more")
        require(self.steps >= 1, "steps", self.steps, "a restart takes a step down", "give 1 or more")
        require(self.rho > 0, "rho", self.rho, "it is the root that is taken", "try 7.0")

    def __call__(self, process: Process, steps: int) -> TimePath:
        times = falling(self.base, process, steps)
        log_s = -process.log_snr(times) / 2
        below = log_s < np.log(self.s_max)
        turn = jnp.argmin(jnp.where(below, jnp.abs(log_s - np.log(self.s_min)), jnp.inf))
        root = jnp.linspace(self.s_max ** (1 / self.rho), jnp.exp(log_s[turn] / self.rho), self.steps + 1)
        # The very time at which the base goes on, since a step that began above it would be a rise.
        again = process.time(-2 * self.rho * jnp.log(root)).at[-1].set(times[turn])
        # Step j is one of the base before the turn, then one of a restart, then one of the base again. Where the
        # turn is may depend on parameters that are learned, so it is no Python number.
        extra = self.repeats * self.steps
        j = jnp.arange(steps - 1 + extra)
        restarting = (j >= turn) & (j < turn + extra)
        in_base = jnp.where(j < turn, j, jnp.maximum(j - extra, 0))
        in_restart = jnp.where(restarting, (j - turn) % self.steps, 0)
        return TimePath(
            jnp.where(restarting, again[in_restart], times[in_base]),
            jnp.where(restarting, again[in_restart + 1], times[in_base + 1]),
        )


@dataclasses.dataclass(frozen=True)
class RePaint:
    """After every `jump_length` steps back by as many, `repeats` times in all (Lugmayr et al. 2022, appendix B).

    For inpainting, where what is known of the image is put into every step: going through the steps again lets the
    rest agree with it.

    Attributes:
      base: the grid whose steps are repeated.
      jump_length: j, the steps between two turns.
      repeats: r, how often they are taken.
    """

    base: Grid
    jump_length: int = 10
    repeats: int = 10

    def __post_init__(self):
        require(self.jump_length >= 1, "jump_length", self.jump_length, "no step is repeated", "try 10")
        require(self.repeats >= 1, "repeats", self.repeats, "no step is taken", "give 1 or more")

    def __call__(self, process: Process, steps: int) -> TimePath:
        times = falling(self.base, process, steps)
        start = steps - 1 - self._walk(steps)
        return TimePath(times[start], times[start + 1])

    def _walk(self, steps: int) -> np.ndarray:
        """Where each step begins, counted from the last time of the base, which is 0."""
        jump = self.jump_length
        turns = range(0, steps - jump, jump)
        if not turns:
            return np.arange(steps - 1, 0, -1)
        first = np.arange(steps - 1, turns[-1], -1)
        legs = [np.arange(turn + jump, turn, -1) for turn in reversed(turns)]
        rest = [np.tile(leg, self.repeats) for leg in legs[1:]]
        return np.concatenate([first, np.tile(legs[0], self.repeats - 1), *rest])
