"""The watchdog: hangs are reported with stacks, and nothing else is."""

import socket
import time

import numpy as np
import pytest

from jaxdiff.training import loop
from jaxdiff.training.fault_tolerance import FaultTolerance, HangDetection
from jaxdiff.training.watchdog import Watchdog
from tests.training import toy
from tests.training.test_loop import run

QUICK = HangDetection(seconds=0.4, steps=4.0)
QUICKLY = {"tolerance": FaultTolerance(hang=QUICK)}


def stuck_in_a_disk():
    time.sleep(1.2)


def test_a_hang_is_reported_once_with_the_host_and_the_stacks(caplog, capfd):
    with Watchdog(QUICK, lambda: "process 1 on red is at step 6, others at 7") as watchdog:
        watchdog.progress(7)
        stuck_in_a_disk()
        watchdog.progress(8)
    (message,) = caplog.messages
    assert message.startswith(f"{socket.gethostname()}: no progress for ")
    assert "after step 7" in message
    assert "process 1 on red is at step 6" in message
    stacks = capfd.readouterr().err
    assert "in stuck_in_a_disk" in stacks
    assert stacks.count("most recent call first") >= 2, "the threads of the training and of the watchdog"


def test_a_second_hang_is_reported_again(caplog):
    with Watchdog(HangDetection(seconds=0.4, steps=0.5)) as watchdog:
        for step in (1, 2):
            watchdog.progress(step)
            time.sleep(0.8)
    assert len(caplog.messages) == 2


def test_what_is_paused_is_no_hang(caplog):
    with Watchdog(QUICK) as watchdog:
        watchdog.progress(1)
        with watchdog.paused():
            time.sleep(1.0)
        time.sleep(0.1)
        watchdog.progress(2)
    assert caplog.messages == []


def test_patience_follows_the_median_of_recent_steps():
    with Watchdog(HangDetection(seconds=0.2, steps=20.0)) as watchdog:
        for step, pause in enumerate([0.0, 0.0, 0.0, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1], 1):
            watchdog.progress(step)
            if step == 4:
                assert watchdog.patience == pytest.approx(0.2), "the shortest"
            time.sleep(pause)
        assert 2.0 <= watchdog.patience < 4.0


def test_before_the_first_step_the_patience_is_ten_times_as_long(caplog):
    with Watchdog(QUICK) as watchdog:
        assert watchdog.patience == pytest.approx(4.0)
        time.sleep(0.8)
    assert caplog.messages == []


@pytest.mark.slow
def test_ten_thousand_steps_are_no_hang(caplog):
    with Watchdog(HangDetection(seconds=0.5)) as watchdog:
        for step, pause in enumerate(np.random.default_rng(0).exponential(2e-4, 10_000), 1):
            time.sleep(pause)
            watchdog.progress(step)
    assert caplog.messages == []


@pytest.mark.slow
def test_a_loader_that_hangs_is_reported_and_an_evaluation_is_not(tmp_path, caplog, capfd):
    def batches(start):
        for step, batch in enumerate(toy.batches(start), start):
            if step == 3:
                stuck_in_a_disk()
            yield batch

    hook = loop.Hook(2, lambda state, step: time.sleep(1.0))
    run(tmp_path, 6, batches, hooks=[hook], checkpoint_every=100, parts=QUICKLY)
    hangs = [message for message in caplog.messages if "no progress" in message]
    assert len(hangs) == 1
    assert "after step 3;" in hangs[0]
    assert "in stuck_in_a_disk" in capfd.readouterr().err


def test_no_detection_starts_no_thread(tmp_path, caplog):
    run(tmp_path, 2, hooks=[], parts={"tolerance": FaultTolerance(hang=None)})
    assert caplog.messages == []
