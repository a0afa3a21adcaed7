"""Signals of real commands outside of training steps."""

import signal
import subprocess
import sys
import time

import orbax.checkpoint as ocp
import pytest

from tests.commands import DIGITS, TINY, arrays, metrics, start

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
    "--config", DIGITS, *TINY, "--config.task.denoiser.network.levels[1].width=640",
    "--config.task.denoiser.network.levels[1].blocks=2", "--config.batch_size=2", "--config.log_every=1",
    "--config.checkpoint_every=10000", "--config.steps=10000",
)  # fmt: skip


@pytest.mark.slow
def test_a_gigabyte_is_durable_ten_seconds_after_sigterm_and_its_save(tmp_path):
    workdir = tmp_path / "run"
    process = start("train", *LARGE, "--workdir", str(workdir))
    deadline = time.monotonic() + 300
    while not (workdir / "metrics.jsonl").exists() or len(metrics(workdir)) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    began = time.monotonic()
    process.terminate()
    process.communicate(timeout=300)
    seconds = time.monotonic() - began
    assert process.returncode == 75
    (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    state = arrays(workdir, step)
    size = sum(leaf.nbytes for leaf in state.values())
    assert size > 1e9
    began = time.monotonic()
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "again", state)
    save = time.monotonic() - began
    print(f"{size / 1e9:.2f} GB: {seconds:.1f} s from SIGTERM to the end; its save alone {save:.1f} s")
    assert seconds < AT_ONCE + save


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
