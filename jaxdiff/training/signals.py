"""Stop signals, kept until the end of a training step."""

import logging
import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
"""Signals that end a run with its state saved: of schedulers, of a lost terminal, of SLURM's warning, and Ctrl-C."""

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was stopped after a step, and continues from its newest checkpoint.

    Args:
      signal_number: the signal, or 0.
      step: the last step.
      saved: the step of the newest checkpoint; None without one.
      cause: what stopped the run, for the text; the signal's name by default.
    """

    def __init__(self, signal_number: int, step: int = 0, saved: int | None = None, cause: str = ""):
        cause = cause or f"stopped by {signal.Signals(signal_number).name}"
        last = "no step is" if saved is None else f"step {saved} is"
        super().__init__(
            f"{cause} at step {step}" + (", which is saved" if saved == step else f"; {last} saved")
        )
        self.signal_number, self.step, self.saved = signal_number, step, saved


class StopSignals:
    """Stop signals, kept until the end of a step; a second SIGINT acts at once.

    In a run of several processes JAX watches for SIGTERM itself, and lets all processes stop at the same step. There
    the other signals are passed on as SIGTERM.
    """

    def __init__(self):
        self._caught = 0
        self._previous: dict[int, Any] = {}
        self._several = jax.process_count() > 1

    def __enter__(self) -> "StopSignals":
        try:
            for number in SIGNALS:
                if not (self._several and number == signal.SIGTERM):
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
        if self._several:
            self.stop_all()

    def stop_all(self) -> None:
        """Stop all processes of a run of several at a step that they agree on."""
        os.kill(os.getpid(), signal.SIGTERM)

    def caught(self, step: int) -> int:
        """The signal to stop for after `step`, or 0; in all processes at the same step."""
        if self._several:
            agreed = multihost_utils.reached_preemption_sync_point(step)
            return (self._caught or signal.SIGTERM) if agreed else 0
        return self._caught
