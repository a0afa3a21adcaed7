"""Goodput: the fraction of a run's time that is spent on steps, and what the rest is spent on, by name."""

import contextlib
import time
from collections.abc import Iterator, Mapping

BADPUT = ("start", "compile", "data", "save", "evaluate", "restart")
"""Names of time that is not spent on new steps.

start: before the loop, imports and data included. data: waiting for batches while the devices have nothing to do.
restart: reading a checkpoint, and steps that an earlier pass had done before.
"""

GOODPUT, PREFIX = "goodput", "badput/"
"""Names in a log: of the fraction, and the begin of those of seconds."""


class Goodput:
    """A stopwatch of a run. Its seconds are of a monotonic clock.

    Args:
      began: when the command began, by `time.monotonic()`; now if None.
    """

    def __init__(self, began: float | None = None):
        now = time.monotonic()
        self._began = now if began is None else began
        self._seconds = dict.fromkeys(BADPUT, 0.0) | {"start": now - self._began}

    @contextlib.contextmanager
    def spent(self, name: str) -> Iterator[None]:
        """Count the time in this context as badput of this name."""
        before = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - before)

    def add(self, name: str, seconds: float) -> None:
        self._seconds[name] += seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._began

    @property
    def lost(self) -> float:
        """Seconds of badput so far."""
        return sum(self._seconds.values())

    @property
    def fraction(self) -> float:
        """Goodput, 0 to 1."""
        elapsed = self.elapsed
        return max(elapsed - self.lost, 0.0) / elapsed if elapsed else 0.0

    def scalars(self) -> Mapping[str, float]:
        """Goodput, and the seconds of each badput, for a log."""
        return {GOODPUT: self.fraction, **{PREFIX + name: value for name, value in self._seconds.items()}}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
        return f"goodput {self.fraction:.1%} of {self.elapsed:.1f} s; {parts}"
