"""Heartbeats between the processes of a run: one that is dead or stopped ends the others, in bounded time.

JAX's own error of a lost process is a stack of C++ and an abort, after a hundred seconds or at once.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxdiff.errors import UserError

BEAT = 2.0
"""Seconds between heartbeats."""

SILENCE = 30.0
"""Seconds without heartbeats after which a process is lost."""

STATUS = 75
"""Exit status of a process whose peer is lost: the same command may succeed."""

STRAGGLING = 1.5
"""Ratio to the median of all processes above which the time of a process is reported."""

LEAST = 0.05
"""Seconds a step that are worth a report."""

KEY = "jaxdiff/heartbeats"

_log = logging.getLogger(__name__)


class Beat(NamedTuple):
    """What a process says of itself.

    Attributes:
      count: grows with each heartbeat.
      host: name of its host.
      step: the step that it has begun.
      busy: mean seconds a step that it waits for data, while the others may wait for it.
      ended: whether it has ended its work, and says no more.
      failed: the exit status with which an error ends it; 0 if there is none.
    """

    count: int
    host: str
    step: int = 0
    busy: float = 0.0
    ended: bool = False
    failed: int = 0


def lost(beats: Mapping[int, tuple[Beat, float]], now: float) -> list[str]:
    """The processes without heartbeats, in words.

    Args:
      beats: of each other process its last heartbeat, and when it came, in seconds.
      now: in seconds of the same clock.
    """
    return [
        f"process {index} on {beat.host} has given no sign for {now - at:.0f} s (at step {beat.step})"
        for index, (beat, at) in sorted(beats.items())
        if now - at > SILENCE and not beat.ended
    ]


def behind(beats: Mapping[int, Beat]) -> list[str]:
    """The processes at an earlier step than others, in words."""
    furthest = max((beat.step for beat in beats.values()), default=0)
    return [
        f"process {index} on {beat.host} is at step {beat.step}, others at {furthest}"
        for index, beat in sorted(beats.items())
        if beat.step < furthest
    ]


def stragglers(beats: Mapping[int, Beat]) -> list[str]:
    """The processes that wait longer for their data than `STRAGGLING` times the median, in words."""
    median = statistics.median(beat.busy for beat in beats.values())
    return [
        f"process {index} on {beat.host} waits {beat.busy:.3g} s a step for its data, the median is {median:.3g} s"
        for index, beat in sorted(beats.items())
        if beat.busy > max(STRAGGLING * median, median + LEAST)
    ]


class Peers:
    """The other processes of a run. Within this context, the loss of one ends this process with status 75.

    An error that ends one of them ends this process too, with the same status, which a supervisor does not repeat.

    In a run of one process nothing happens.
    """

    def __init__(self):
        self._index, self._count = jax.process_index(), jax.process_count()
        self._client: Any = None
        self._own = Beat(0, socket.gethostname())
        self._lock = threading.Lock()  # guards `_own`, which both the loop and the heartbeats change
        self._talker: threading.Thread | None = None
        self._address = ""
        self._waits: list[float] = []
        self._beats: dict[int, tuple[Beat, float]] = {}
        self._reached = time.monotonic()
        self._ended = threading.Event()
        self._handler: Any = None

    def __enter__(self) -> "Peers":
        if self._count == 1:
            return self
        from jax._src import distributed  # the key-value store has no public name

        self._client = distributed.global_state.client
        self._address = distributed.global_state.coordinator_address or ""
        self._reached = time.monotonic()
        self._talker, judge = (
            threading.Thread(target=target, name="heartbeats", daemon=True)
            for target in (self._talk, self._judge)
        )
        self._talker.start()
        judge.start()
        self._handler = _on_abort(self._aborted)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._client is None:
            return
        if isinstance(error, Exception) and _may_be_of_a_lost_peer(error):
            time.sleep(SILENCE + 3 * BEAT)  # if so, this process ends meanwhile
        self._ended.set()
        if self._talker is not None:
            self._talker.join(2 * BEAT)  # its last heartbeat comes before that of the end
        if error is None or isinstance(error, Exception):
            failed = 0 if error is None else 2 if isinstance(error, UserError) else 1
            with contextlib.suppress(Exception):  # of JAX's service, at the end of the work
                self._send(self._own._replace(count=self._own.count + 1, ended=not failed, failed=failed))
            if failed and self._index == 0:
                time.sleep(2 * BEAT)  # the others read this from the first process
        _restore_abort()

    def report(self, step: int, waited: float) -> None:
        """This process begins a step, after it has waited for the batch, in seconds."""
        self._waits = [*self._waits[-31:], waited]
        with self._lock:
            self._own = self._own._replace(step=step, busy=statistics.fmean(self._waits))

    def late(self) -> str:
        """The processes at an earlier step than others; empty if there are none."""
        return "; ".join(behind(self._all()))

    def report_stragglers(self) -> None:
        """Warn about processes that are slower than the others, in the first one."""
        if self._index == 0 and len(found := self._all()) == self._count > 1:
            for each in stragglers(found):
                _log.warning("%s", each)

    def _all(self) -> dict[int, Beat]:
        return {index: beat for index, (beat, _) in self._beats.items()} | {self._index: self._own}

    def _talk(self) -> None:
        """Send and receive heartbeats; a call may never return if the first process is stopped."""
        while not self._ended.wait(BEAT):
            with self._lock:
                own = self._own = self._own._replace(count=self._own.count + 1)
            try:
                self._send(own)
                found = self._client.key_value_dir_get(KEY)
            except Exception:  # of JAX's service; `_judge` sees that nothing comes
                continue
            self._reached = time.monotonic()
            for key, text in found:
                index, beat = int(key.rpartition("/")[2]), Beat(*json.loads(text))
                if index != self._index and self._beats.get(index, (None, 0))[0] != beat:
                    self._beats[index] = (beat, self._reached)

    def _send(self, beat: Beat) -> None:
        self._client.key_value_set(f"{KEY}/{self._index}", json.dumps(beat), allow_overwrite=True)

    def _judge(self) -> None:
        while not self._ended.wait(BEAT / 2):
            now = time.monotonic()
            for index, (beat, _) in self._beats.items():
                if beat.failed and not self._ended.is_set():
                    _end(f"process {index} on {beat.host} has failed", beat.failed, "see its own error")
            found = lost(self._beats, now)
            if now - self._reached > SILENCE:
                found = [f"{self._first()}, which keeps the processes together, does not answer"]
            if found and not self._ended.is_set():
                _end("; ".join(found))

    def _first(self) -> str:
        known = self._all().get(0)
        return f"process 0 on {known.host}" if known else "process 0"

    def _aborted(self) -> None:
        """JAX aborts this process; a failure of its own leaves the first process reachable."""
        if self._index != 0 and self._address and not _answers(self._address):
            _end(f"{self._first()}, which keeps the processes together, has ended")


def _end(why: str, status: int = STATUS, fix: str = "run the same command again on all hosts") -> None:
    line = f"error: {why}. This process ends too. Fix: {fix}\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
    os._exit(status)


def _may_be_of_a_lost_peer(error: Exception) -> bool:
    """Whether an error is one of JAX's collectives, whose text has the status of a remote call."""
    text = str(error)
    return any(
        mark in text for mark in ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL")
    )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def _on_abort(call: Any) -> Any:
    """Call a function when the C library aborts this process. Python's own handlers run too late for that."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: call())
    signal_of_c = ctypes.CDLL(None).signal
    signal_of_c.argtypes, signal_of_c.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    signal_of_c(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    return handler  # to be kept as long as it may be called


def _restore_abort() -> None:
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
