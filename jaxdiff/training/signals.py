"""Stop signals, kept until the end of a training step."""

import logging
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was stopped by the signal `signal_number`, after its state was saved at `step`."""

    def __init__(self, signal_number: int, step: int = 0):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}, which is saved")
        self.signal_number = signal_number
        self.step = step


class StopSignals:
    """SIGTERM and SIGINT, kept until the end of a step; a second SIGINT acts at once.

    In a run of several processes JAX watches for SIGTERM itself, and lets all processes stop at the same step.
    """

    def __init__(self):
        self._caught = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if jax.process_count() == 1:
            try:
                for number in (signal.SIGTERM, signal.SIGINT):
                    self._previous[number] = signal.signal(number, self._catch)
            except ValueError:
                _log.info("not in the main thread: signals are left alone")
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._caught:
            raise KeyboardInterrupt
        self._caught = number

    def caught(self, step: int) -> int:
        """The signal to stop for after `step`, or 0; the same in all processes."""
        if jax.process_count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._caught
