"""The steps of a recipe: the times of a grid, an ending, and parts of both."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError, expect
from jaxdiff.sampling.loop import as_path, ends
from jaxdiff.sampling.protocols import TimePath
from jaxdiff.typing import Array, Float, Int

UNBOUNDED = 2**31 - 1
SAME_TIME = 1e-6
"""Times that differ by less are one: single precision, on models of 1000 steps and more."""


class Plan(NamedTuple):
    """The steps of a recipe.

    Attributes:
      times: of the steps.
      jumps: whether the jump to the predicted x_0 follows, at the last time.
      max_orders: for each step a bound on its order; None where the ending bounds none.
      first: number of the first step.
    """

    times: Float[Array, "times"] | TimePath
    jumps: bool
    max_orders: Int[Array, "steps"] | None = None
    first: int = 0

    def bounded(self, lower_order_final: bool, euler_at_final: bool) -> "Plan":
        """With bounds on the orders of the last steps, see `Recipe`."""
        count = len(as_path(self.times).start)
        left = np.arange(count, 0, -1) + self.jumps  # steps left, the jump to x_0 included
        bounds = left if lower_order_final else np.full(count, UNBOUNDED)
        if euler_at_final:
            bounds = np.where(left == 1, 1, bounds)
        bounded = bool(np.any(bounds < UNBOUNDED))
        return self._replace(max_orders=jnp.asarray(bounds, jnp.int32) if bounded else None)

    def part(self, until: float | None, below: float | None) -> "Plan":
        """The steps that begin at `until` or above, and below `below`.

        The times must be numbers, not traced: their count is a part of the program.

        Raises:
          UserError: none is left, or the grid returns to noise.
        """
        field, value = ("until", until) if below is None else ("below", below)
        path = as_path(self.times)
        starts = np.append(path.start, ends(self.times)[1]) if self.jumps else np.asarray(path.start)
        if np.any(np.diff(starts) >= 0):
            raise _refused(field, value)
        first = 0 if below is None else int(np.sum(starts > below - SAME_TIME))
        stop = len(starts) if until is None else int(np.sum(starts > until - SAME_TIME))
        fix = "choose another time, or more steps"
        expect(first < stop, field, value, "a time that leaves a step", fix, f"none of {len(starts)}")
        if isinstance(self.times, TimePath):
            times = TimePath(path.start[first:stop], path.end[first:stop])
        else:
            times = self.times[first : stop + 1]
        orders = None if self.max_orders is None else self.max_orders[first:stop]
        return Plan(times, self.jumps and stop == len(starts), orders, first)


def with_end(times: Float[Array, "times"] | TimePath, t_end: float | None) -> Plan:
    """Steps from each of the times to the next; from the last to `t_end`, or the jump if it is None."""
    if t_end is None:
        return Plan(times, jumps=True)
    if isinstance(times, TimePath):
        path = TimePath(jnp.append(times.start, times.end[-1]), jnp.append(times.end, t_end))
        return Plan(path, jumps=False)
    return Plan(jnp.append(times, t_end), jumps=False)


def of_one_length(
    times: Float[Array, "times"] | TimePath, length: int, train_steps: int, t_end: float | None
) -> Plan:
    """Steps from each of the times that all fall by `length` steps of the model.

    Those that would end below the model's first step end at `t_end`, or with clean data if it is None.
    """
    if isinstance(times, TimePath):
        raise _refused("fixed_stride", train_steps)
    end = times - length / train_steps
    end = jnp.where(end < 0.5 / train_steps, t_end or 0.0, end)
    # Rounding must not leave an end below the next start, which would count as a return to noise.
    return Plan(TimePath(times, jnp.maximum(end, jnp.append(times[1:], 0.0))), jumps=False)


def _refused(field: str, value: object) -> UserError:
    return UserError(
        f"{field}={value}: expected a grid that only decreases, got one that returns to noise. "
        "Fix: choose another, such as Uniform"
    )
