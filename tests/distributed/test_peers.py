"""Heartbeats between processes: who is lost, late or slow, and the end of the others."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxdiff.distributed.peers import SILENCE, Beat, Peers, behind, lost, stragglers
from tests.commands import environment


def beats(**steps):
    return {index: Beat(1, name, step) for index, (name, step) in enumerate(steps.items())}


def test_a_process_is_lost_after_its_silence_and_named_with_its_host():
    known = {1: (Beat(5, "red", 7), 100.0), 2: (Beat(5, "blue", 8), 100.0 + SILENCE)}
    assert lost(known, 100.0 + SILENCE) == []
    (found,) = lost(known, 101.0 + SILENCE)
    assert found.startswith("process 1 on red")
    assert "step 7" in found
    ended = {1: (Beat(5, "red", 7, ended=True), 0.0)}
    assert lost(ended, 1e6) == [], "one that has ended its work says no more"


def test_those_behind_the_others_are_late():
    assert behind(beats(red=4, blue=5, green=5)) == ["process 0 on red is at step 4, others at 5"]
    assert behind(beats(red=5, blue=5)) == []
    assert behind({}) == []


def test_a_straggler_is_above_one_and_a_half_medians():
    def waiting(*seconds):
        return {index: Beat(1, f"host{index}", 1, wait) for index, wait in enumerate(seconds)}

    assert stragglers(waiting(1.0, 1.0, 1.4)) == []
    (found,) = stragglers(waiting(1.0, 1.0, 1.6))
    assert found.startswith("process 2 on host2 waits 1.6 s")
    assert stragglers(waiting(0.001, 0.001, 0.01)) == [], "milliseconds delay nobody"


def test_one_process_has_no_peers():
    with Peers() as peers:
        peers.report(1, 0.5)
        peers.report_stragglers()
        assert peers.late() == ""


WORK = """
import time
import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jaxdiff.distributed import runtime
from jaxdiff.distributed.peers import Peers
from jaxdiff.errors import UserError

runtime.start()
with Peers() as peers:
    for step in range(10_000):
        peers.report(step, 0.0)
        multihost_utils.process_allgather(jnp.ones(3))
        if step == 20:
            time.sleep(5)  # heartbeats have been exchanged
            print("ready", flush=True)
            if FAILING == jax.process_index():
                raise UserError("data=x: expected y, got z. Fix: w")
        time.sleep(0.01)
"""

BOUND = SILENCE + 20.0
"""Seconds after which the others have ended, on a busy machine."""


@pytest.fixture
def pair():
    """Starts two processes of one computation, of which one may fail, and waits for their heartbeats."""
    started = []

    def begin(failing=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        started.extend(
            subprocess.Popen(
                [sys.executable, "-c", f"FAILING = {failing}\n{WORK}"], text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=environment(1, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)),
            )
            for i in range(2)
        )  # fmt: skip
        for process in started:
            lines = iter(process.stdout.readline, "")
            assert "ready\n" in lines, process.stderr.read()
        return started

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_other_with_one_line(pair, victim, number):
    processes = pair()
    processes[victim].send_signal(number)
    began, other = time.monotonic(), processes[1 - victim]
    _, err = other.communicate(timeout=100)
    assert time.monotonic() - began < BOUND
    assert other.returncode == 75, err
    line = err.splitlines()[-1]
    assert line.startswith(f"error: process {victim} on {socket.gethostname()}")
    assert "Fix: run the same command again" in line


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_ends_the_other_with_its_status(pair, failing):
    """So that no supervisor repeats what fails each time."""
    other = pair(failing)[1 - failing]
    _, err = other.communicate(timeout=100)
    assert other.returncode == 2, err
    assert err.splitlines()[-1].startswith(f"error: process {failing} on {socket.gethostname()} has failed")
