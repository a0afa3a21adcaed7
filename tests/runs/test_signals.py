"""Signals of real commands outside of training steps."""

import re
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import DIGITS, TINY, start

AT_ONCE = 10.0
"""Seconds: a busy machine needs a few to end a process; the first step would take longer."""


def send(process, number):
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert time.monotonic() - began < AT_ONCE
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_before_the_first_step_a_signal_acts_at_once(tmp_path, number, status):
    process = start("train", "--config", DIGITS, *TINY, "--workdir", str(tmp_path / "run"))
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "run.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    err = send(process, number)
    assert process.returncode == status
    assert err.splitlines()[-1].startswith(f"stopped by {signal.Signals(number).name}: no step is lost")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


LARGE = (
    "--config.batch_size=2", "--config.log_every=1", "--config.steps=1000", "--config.checkpoint_every=1000",
    "--config.evaluation=None", "--config.test_data=None", "--config.task.denoiser.network.levels[1].width=736",
    "--config.task.denoiser.network.levels[1].blocks=1",
)  # fmt: skip
"""A state of a gigabyte whose steps take a second or two."""


@pytest.mark.slow
def test_with_a_state_of_a_gigabyte_a_stop_takes_its_save_and_ten_seconds(tmp_path):
    workdir = tmp_path / "run"
    process = start("train", "--config", DIGITS, *TINY, *LARGE, "--workdir", str(workdir))
    log, deadline = workdir / "metrics.jsonl", time.monotonic() + 200
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    taken = time.monotonic() - began
    assert process.returncode == 75, err
    state = re.search(r"parameters (\d+) MB, EMA (\d+) MB, optimizer (\d+) MB", out).groups()
    assert sum(map(int, state)) > 1000
    saving = float(re.search(r"save ([\d.]+) s", out).group(1))
    assert saving < taken < saving + AT_ONCE


STUCK = """
import ctypes
from jaxdiff.cli.stop_signals import StopAtOnce

with StopAtOnce() as stop, stop.steps():
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).sleep(1000)
"""


def test_a_second_interrupt_ends_a_process_that_does_not_react():
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first one waits for the end of a step"
    err = send(process, signal.SIGINT)
    assert process.returncode == 130
    assert "SIGINT" in err
