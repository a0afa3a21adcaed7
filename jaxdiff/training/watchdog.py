"""Watchdog of a run: a thread that prints the stacks of all threads when the training makes no progress."""

import contextlib
import faulthandler
import logging
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from jaxdiff.training.fault_tolerance import HangDetection

RECENT = 32
"""Steps whose median is the duration of a step."""

BEFORE_FIRST = 10.0
"""Ratio of the patience before the first step, when data may be read and decoded as a whole, to the later one."""

_log = logging.getLogger(__name__)


class Watchdog:
    """Detects hangs, see `HangDetection`. It reports each one once, and changes nothing in training.

    Args:
      limits: when a run hangs; None never reports.
      who: a text that says which process is late, for runs of several processes; empty if that is not known.
    """

    def __init__(self, limits: HangDetection | None, who: Callable[[], str] = lambda: ""):
        self._limits, self._who = limits, who
        self._durations: deque[float] = deque(maxlen=RECENT)
        self._lock = threading.Lock()  # guards all that follows: two threads write it
        self._since, self._step, self._paused, self._reported = time.monotonic(), 0, 0, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limits is not None:
            self._since = time.monotonic()
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def progress(self, step: int) -> None:
        """A step has ended."""
        with self._lock:
            now = time.monotonic()
            if self._step:
                self._durations.append(now - self._since)
            self._since, self._step, self._reported = now, step, False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in this context, such as a compilation, takes as long as it takes."""
        with self._lock:
            self._paused += 1
            before = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._paused -= 1
                self._since += time.monotonic() - before

    @property
    def patience(self) -> float:
        """Seconds without progress after which the run hangs."""
        assert self._limits is not None
        if not self._step:
            return BEFORE_FIRST * self._limits.seconds
        median = statistics.median(self._durations) if self._durations else 0.0
        return max(self._limits.seconds, self._limits.steps * median)

    def _watch(self) -> None:
        while not self._ended.wait(self._wait()):
            with self._lock:
                waited, step = time.monotonic() - self._since, self._step
                late = not (self._paused or self._reported) and waited > self.patience
                self._reported = self._reported or late
            if late:
                self._report(step, waited)

    def _wait(self) -> float:
        assert self._limits is not None
        return min(1.0, self._limits.seconds / 4)

    def _report(self, step: int, waited: float) -> None:
        who = self._who()
        text = "%s: no progress for %.0f s after step %d; the stacks of all threads follow%s"
        _log.warning(text, socket.gethostname(), waited, step, f". {who}" if who else "")
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
