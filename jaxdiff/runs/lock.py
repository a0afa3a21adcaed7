"""The lock of a run's folder: one process writes, and a second one is refused."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from etils import epath

from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import UserError

LOCK = "run.lock"
"""Name of the lock's file in a run's folder. It says who holds the lock."""

BEAT = 10.0
"""Seconds between heartbeats of the holder."""

PATIENCE = 3
"""Heartbeats that a holder on another host may miss before its lock is taken over."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(workdir: epath.PathLike) -> Iterator[None]:
    """Hold the lock of a run's folder. In a run of several processes the first one holds it for all.

    On one host the operating system frees the lock of a process that dies. The holder also writes a heartbeat. Where
    the file system has no locks between hosts, or at all (buckets), a lock without heartbeats is taken over.

    Raises:
      UserError: another process holds it; the message names its host and process.
    """
    held = in_first(lambda: _Held(epath.Path(workdir).expanduser() / LOCK))
    try:
        yield
    finally:
        if held is not None:
            held.release()


class _Held:
    """A lock that this process holds, and the thread of its heartbeats."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._file = _locked_file(path) if "://" not in str(path) else None
        try:
            _check_record(path, locked=self._file is not None)
        except UserError:
            self._close()
            raise
        self._released = threading.Event()
        self._count, self._token = 0, secrets.token_hex(8)
        self._write()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self._path.unlink()
        self._close()

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            self._count += 1
            if not self._is_ours():
                _log.warning("%s: another process has taken over this run, since this one did not answer: "
                             "stop one of them", self._path)  # fmt: skip
                return
            with contextlib.suppress(OSError):  # a full disk stops no training
                self._write()

    def _is_ours(self) -> bool:
        """Whether no other process has written the record since; after a pause of this one it may have."""
        return _record(self._path).get("token", self._token) == self._token

    def _write(self) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"host": socket.gethostname(), "process": os.getpid(), "beat": self._count, "time": now,
                  "token": self._token}  # fmt: skip
        text = json.dumps(record) + "\n"
        if self._file is None:
            self._path.write_text(text)
            return
        self._file.seek(0)
        self._file.write(text)
        self._file.truncate()
        self._file.flush()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


def _locked_file(path: epath.Path) -> TextIO | None:
    """The file, locked by the operating system; None where the file system has no locks."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--workdir={path.parent}: expected a writable folder, got {error.strerror or error}. "
                "Fix: give another folder"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise _refusal(path) from None
        except OSError:
            file.close()
            return None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        file.close()  # its holder has removed this file; another process may hold a new one


def _check_record(path: epath.Path, locked: bool) -> None:
    """Raise a `UserError` if the process in the record is alive; on another host, its heartbeats tell.

    Args:
      locked: whether the operating system's lock is held, which no other process of this host has then.
    """
    first = _record(path)
    if first.get("host") == socket.gethostname():
        if not locked and _is_alive(first.get("process")):
            raise _refusal(path)
        return
    if first:
        _log.warning("%s: process %s on %s held this run; waiting %.0f s for a sign of it", path,
                     first.get("process"), first.get("host"), PATIENCE * BEAT)  # fmt: skip
    for _ in range(PATIENCE if first else 0):
        time.sleep(BEAT)
        if _record(path) != first:
            raise _refusal(path)


def _is_alive(process: Any) -> bool:
    if not isinstance(process, int) or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _record(path: epath.Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _refusal(path: epath.Path) -> UserError:
    holder = _record(path)
    who = f"process {holder.get('process', 'unknown')} on {holder.get('host', 'an unknown host')}"
    return UserError(
        f"--workdir={path.parent}: expected a run that no other process writes, got one at work "
        f"({who}, last seen {holder.get('time', 'at an unknown time')}). "
        "Fix: wait until it ends, stop it, or give another folder"
    )
