"""Faults of a training by two processes: signals that one of them receives, and the loss of one."""

import signal
import socket
import time

import pytest

from tests.commands import DIGITS, TINY, metrics, start

TRAIN = (
    "--config", DIGITS, *TINY, "--config.steps=100000", "--config.checkpoint_every=100000", "--config.log_every=1",
    "--config.evaluation=None", "--config.test_data=None",
)  # fmt: skip


@pytest.fixture
def processes(tmp_path):
    """Two processes that have trained a few steps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    found = [
        start(
            "train", *TRAIN, "--workdir", str(tmp_path), devices=1,
            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]  # fmt: skip
    file, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 300
    while not (file.exists() and len(file.read_text().splitlines()) > 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield found
    for process in found:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "receiver", "status"),
    [(signal.SIGINT, 1, 130), (signal.SIGHUP, 0, 75), (signal.SIGUSR1, 1, 75)],
)
def test_a_signal_to_one_process_stops_both_at_one_step(tmp_path, processes, number, receiver, status):
    processes[receiver].send_signal(number)
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert processes[receiver].returncode == status, errors[receiver]
    assert processes[1 - receiver].returncode == 75, errors[1 - receiver]
    (saved,) = (path.name for path in (tmp_path / "checkpoints").iterdir())
    assert all(f"at step {saved}, which is saved" in text for text in errors)
    assert metrics(tmp_path)[-1]["step"] == int(saved)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_training_of_the_other(processes, victim):
    processes[victim].kill()
    began = time.monotonic()
    _, err = processes[1 - victim].communicate(timeout=200)
    assert time.monotonic() - began < 60
    assert processes[1 - victim].returncode == 75, err
    assert err.splitlines()[-1].startswith(f"error: process {victim} on {socket.gethostname()}")
