"""Grids that return to noise: parts of another grid are repeated, each time with fresh noise."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import expect, positive
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.grids.continuous import falling
from jaxdiff.sampling.protocols import Grid, TimePath


@dataclasses.dataclass(frozen=True)
class Restart:
    """Restart sampling: down to s_min, then repeatedly up to s_max and down again (Xu et al. 2023, algorithm 1).

    The noise of each restart contracts the errors of the steps before it.

    Attributes:
      base: the grid that is interrupted, at its noise level nearest to s_min (among those below s_max).
      s_min, s_max: the interval of noise levels ``sigma / alpha``.
      repeats: K, the number of restarts.
      steps: the steps of each restart, spaced as those of `Karras`.
      rho: exponent of that spacing.
    """

    base: Grid
    s_min: float = 0.06
    s_max: float = 0.3
    repeats: int = 5
    steps: int = 3
    rho: float = 7.0

    def __post_init__(self):
        positive(self, "s_min", "rho")
        expect(
            self.s_max > self.s_min,
            "s_max",
            self.s_max,
            f"a number > s_min={self.s_min}",
            "give a larger number",
        )
        expect(self.repeats >= 0, "repeats", self.repeats, "a count >= 0", "give 0 or more")
        expect(self.steps >= 1, "steps", self.steps, "a count >= 1", "give 1 or more")

    def __call__(self, process: Process, steps: int) -> TimePath:
        times = falling(self.base, process, steps)
        log_s = -process.log_snr(times) / 2
        below = log_s < np.log(self.s_max)
        turn = jnp.argmin(jnp.where(below, jnp.abs(log_s - np.log(self.s_min)), jnp.inf))
        root = jnp.linspace(self.s_max ** (1 / self.rho), jnp.exp(log_s[turn] / self.rho), self.steps + 1)
        # Exactly the time at which the base continues: a step that began above it would add noise.
        again = process.time(-2 * self.rho * jnp.log(root)).at[-1].set(times[turn])
        # Step j is one of the base before the turn, then one of a restart, then one of the base again. The turn may
        # depend on learned parameters, so it is a traced number.
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
    """RePaint: after every `jump_length` steps back by as many, `repeats` times (Lugmayr et al. 2022, appendix B).

    For inpainting, where known data replace a part of every step: repeating the steps harmonises the rest with it.

    Attributes:
      base: the grid whose steps are repeated.
      jump_length: j, the number of steps between two turns.
      repeats: r, how often they are taken.
    """

    base: Grid
    jump_length: int = 10
    repeats: int = 10

    def __post_init__(self):
        expect(self.jump_length >= 1, "jump_length", self.jump_length, "a count >= 1", "try 10")
        expect(self.repeats >= 1, "repeats", self.repeats, "a count >= 1", "give 1 or more")

    def __call__(self, process: Process, steps: int) -> TimePath:
        times = falling(self.base, process, steps)
        start = steps - 1 - self._walk(steps)
        return TimePath(times[start], times[start + 1])

    def _walk(self, steps: int) -> np.ndarray:
        """The position where each step begins, counted from the last time of the base, which is 0."""
        jump = self.jump_length
        turns = range(0, steps - jump, jump)
        if not turns:
            return np.arange(steps - 1, 0, -1)
        first = np.arange(steps - 1, turns[-1], -1)
        legs = [np.arange(turn + jump, turn, -1) for turn in reversed(turns)]
        rest = [np.tile(leg, self.repeats) for leg in legs[1:]]
        return np.concatenate([first, np.tile(legs[0], self.repeats - 1), *rest])
