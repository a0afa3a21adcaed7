"""Bounds of a run other than its steps: a limit of wall-clock time, and the steps that are profiled."""

import dataclasses
import re
import time
from typing import Any

import jax
from etils import epath

from jaxdiff.errors import expect

MARGIN = 300.0
"""Seconds before a limit of time at which a run stops to save, if a tenth of the limit is not shorter."""

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str) -> float:
    """The seconds of a duration: a number with a unit, ``90m``, or hours, minutes and seconds, ``HH:MM:SS``.

    Raises:
      UserError: it is neither, or not positive.
    """
    fix = "give 90m, 1.5h or 01:30:00, for example"
    clock, unit = re.fullmatch(r"(\d+):(\d\d):(\d\d)", text), re.fullmatch(r"(\d+\.?\d*)([smhd])", text)
    expect(bool(clock or unit), "--time-limit", text, "a duration with a unit, or HH:MM:SS", fix, text)
    if clock:
        hours, minutes, seconds = map(int, clock.groups())
        found = float(3600 * hours + 60 * minutes + seconds)
    else:
        assert unit
        found = float(unit[1]) * UNITS[unit[2]]
    expect(found > 0, "--time-limit", text, "a duration > 0", fix, text)
    return found


@dataclasses.dataclass(frozen=True)
class TimeLimit:
    """A limit of wall-clock time: the run saves and stops before it.

    Attributes:
      seconds: the limit.
      began: when it began to count, by `time.monotonic()`.
    """

    seconds: float
    began: float

    def reached(self, step: float, save: float) -> bool:
        """Whether there is no time for another step.

        Args:
          step: seconds of the longest recent step.
          save: seconds of the longest save.
        """
        left = self.began + self.seconds - time.monotonic()
        return left < min(MARGIN, self.seconds / 10) + 2 * (step + save)


class Profile:
    """A trace of some steps, which TensorBoard and Perfetto open. Without steps it does nothing.

    Args:
      folder: where the trace is written.
      steps: first and last step of the trace, or None.
    """

    def __init__(self, folder: epath.PathLike, steps: tuple[int, int] | None):
        self._folder, self._steps = str(folder), steps
        self._active = False

    def before(self, step: int) -> None:
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._active = True

    def after(self, step: int, results: Any) -> None:
        """A step is dispatched; `results` are its outputs, which the end of the trace waits for."""
        if self._active and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        if self._active:
            self._active = False
            jax.profiler.stop_trace()


def profiled_steps(text: str) -> tuple[int, int]:
    """First and last step of ``START:STOP``.

    Raises:
      UserError: these are not two steps in order.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    expected, fix = "two steps START:STOP with 1 <= START <= STOP", "give 100:105, for example"
    first, last = map(int, match.groups()) if match else (0, 0)
    expect(1 <= first <= last, "--profile", text, expected, fix, text)
    return first, last
