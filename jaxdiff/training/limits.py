"""Bounds of a run other than its steps: a limit of wall-clock time, and the steps that are profiled."""

import contextlib
import dataclasses
import time
from typing import Any

import jax
from etils import epath

MARGIN = 300.0
"""Seconds before a limit of time at which a run stops to save, if a tenth of the limit is not shorter."""


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
        self._active = self._done = False

    def marked(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """A context that marks a step in the trace."""
        if not self._active:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def before(self, step: int) -> None:
        if self._steps is not None and not self._done and self._steps[0] <= step <= self._steps[1]:
            self._done = True
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
