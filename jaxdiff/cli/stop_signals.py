"""Stop signals of a command that trains: outside of training steps, where nothing is unsaved, they act at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
AGAIN = 75
"""Exit status that means: run the same command again."""

GRACE = 3.0
"""Seconds that Python has for a second Ctrl-C, before the process ends without it."""


class StopAtOnce:
    """Ends the process when a stop signal arrives, with status 75, or 130 for Ctrl-C.

    A thread waits for the signals: a compilation takes minutes in which Python runs no handler. In `steps` the
    training handles them, and only a second Ctrl-C ends the process.
    """

    def __init__(self):
        self._training, self._interrupts = False, 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopAtOnce":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, _nothing) for number in SIGNALS}
        threading.Thread(target=self._watch, name="stop signals", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._previous:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._write)  # ends the thread

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        """In this context the training handles the signals."""
        self._training, self._interrupts = True, 0
        try:
            yield
        finally:
            self._training = False

    def _watch(self) -> None:
        with open(self._read, "rb", buffering=0) as pipe:
            while received := pipe.read(1):
                self._received(received[0])

    def _received(self, number: int) -> None:
        if number not in SIGNALS:
            return
        if not self._training:
            _end(number, "no step is lost; run the same command to go on")
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            time.sleep(GRACE)
            _end(number, "the steps since the last checkpoint are lost")


def _nothing(number: int, frame: Any) -> None:
    """A handler in place of the default one, which would end the process with another status."""


def _end(number: int, consequence: str) -> None:
    line = f"stopped by {signal.Signals(number).name}: {consequence}\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
    os._exit(128 + signal.SIGINT if number == signal.SIGINT else AGAIN)
