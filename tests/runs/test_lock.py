"""The lock of a run's folder, between real processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxdiff.errors import UserError
from jaxdiff.runs import lock as locks
from jaxdiff.runs.lock import LOCK, lock

HOLDER = """
import sys, time
from jaxdiff.runs.lock import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def holder(folder):
    """Another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_a_killed_ones_lock_is_taken_over(tmp_path):
    with holder(tmp_path) as process:
        began = time.monotonic()
        with (
            pytest.raises(UserError, match=f"process {process.pid} on {socket.gethostname()}"),
            lock(tmp_path),
        ):
            pass
        assert time.monotonic() - began < 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_one_lock_per_process(tmp_path):
    with lock(tmp_path), pytest.raises(UserError, match="at work"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("alive", [True, False])
def test_the_heartbeats_of_another_host_decide(tmp_path, monkeypatch, caplog, alive):
    """Where the file system has no locks between hosts."""
    monkeypatch.setattr(locks, "BEAT", 0.05)
    record = {"host": "elsewhere", "process": 1, "beat": 0, "time": "2026-01-01"}
    (tmp_path / LOCK).write_text(json.dumps(record))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if alive:
            (tmp_path / LOCK).write_text(json.dumps({**record, "beat": len(slept)}))

    monkeypatch.setattr(time, "sleep", sleep)
    if alive:
        with pytest.raises(UserError, match="process 1 on elsewhere"), lock(tmp_path):
            pass
    else:
        with lock(tmp_path):
            pass
    assert len(slept) == (1 if alive else locks.PATIENCE)
    assert "process 1 on elsewhere held this run; waiting" in caplog.text


def test_a_holder_writes_heartbeats(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with lock(tmp_path):
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / LOCK).read_text() or '{"beat": 0}')["beat"] < 2:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("text", ["", "rubbish", "[]", '{"host": 3}'])
def test_a_damaged_record_is_no_obstacle(tmp_path, monkeypatch, text):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    (tmp_path / LOCK).write_text(text)
    with lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a writable folder"), lock(tmp_path / "file" / "run"):
        pass


def test_a_lock_that_was_taken_over_is_not_released(tmp_path):
    with lock(tmp_path):
        other = {"host": "elsewhere", "process": 1, "beat": 0, "time": "now", "token": "another"}
        (tmp_path / LOCK).write_text(json.dumps(other))
    assert json.loads((tmp_path / LOCK).read_text())["token"] == "another"


def test_a_holder_notices_that_its_lock_was_taken_over(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    with lock(tmp_path):
        (tmp_path / LOCK).write_text(json.dumps({"token": "another"}))
        deadline = time.monotonic() + 10
        while "taken over" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "another process has taken over" in caplog.text
        assert json.loads((tmp_path / LOCK).read_text())["token"] == "another"
