"""A long run under faults of all kinds reaches the state of a run without any."""

import collections
import itertools
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.commands import DIGITS, TINY, arrays, digest, metrics, run, start
from tests.runs.test_faults import flip

STEPS, FAULTS = 1000, 24
ROUNDING = 1e-3
"""Of the largest value of an array: what sums in another order come to in 1,000 steps."""

# Adam's eps is above the rounding of gradients that are zero in theory: biases of keys would drift at random otherwise.
TRAIN = (
    "--config", DIGITS, *TINY, f"--config.steps={STEPS}", "--config.checkpoint_every=10", "--config.keep=4",
    "--config.log_every=1", "--config.evaluation=None", "--config.test_data=None", "--config.optimizer.eps=1e-3",
)  # fmt: skip


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Chaos:
    """A run that is continued after every fault, with the next number of devices.

    Attributes:
      seen: how often each fault has happened.
    """

    def __init__(self, disk, devices):
        self.workdir, self._filler = disk / "run", disk / "filler"
        self._devices = itertools.cycle(devices)
        self.seen = collections.Counter()
        self._start()

    def _start(self):
        self.process = start("train", *TRAIN, "--workdir", str(self.workdir), devices=next(self._devices))

    def reaches(self, step):
        """Wait until a step is logged; whether the run is still going then."""
        while self.process.poll() is None and self._last_step() < step:
            time.sleep(0.01)
        return self.process.poll() is None

    def _last_step(self):
        file = self.workdir / "metrics.jsonl"
        rows = file.read_text().splitlines() if file.exists() else []
        whole = [row for row in rows if row.endswith("}")]
        return int(whole[-1].partition('"step": ')[2].partition(",")[0].rstrip("}")) if whole else 0

    def stop(self, number, statuses):
        """Send a signal, check the exit status, and start the same command again."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=120)
        assert self.process.returncode in statuses, err
        self.seen[number.name] += 1
        self._start()

    def kill(self):
        self.stop(signal.SIGKILL, (-signal.SIGKILL,))

    def terminate(self):
        self.stop(signal.SIGTERM, (75,))

    def hang_up(self):
        self.stop(signal.SIGHUP, (75,))

    def flip(self):
        """A flipped bit in the newest checkpoint, which the next start finds."""
        self.process.kill()
        self.process.communicate()
        folder = self.workdir / "checkpoints"
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        if len(steps) > 1:  # with a single one, nothing intact would be left
            flip(folder / str(max(steps)))
            self.seen["flip"] += 1
        self._start()

    def fill(self):
        """A disk that is full for some steps, whose saves fail."""
        step = self._last_step()
        with open(self._filler, "wb") as filler:
            try:
                while True:
                    filler.write(bytes(1 << 16))
                    filler.flush()
            except OSError:
                pass
        time.sleep(3)
        self._filler.unlink()
        assert self.process.poll() is None, f"ended by a full disk after step {step}"
        self.seen["full disk"] += 1

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        self.process.send_signal(signal.SIGCONT)
        self.seen["pause"] += 1


FAULT_KINDS = (Chaos.kill, Chaos.flip, Chaos.terminate, Chaos.fill, Chaos.pause, Chaos.hang_up)


def disturbed(disk, devices, seed):
    """The folder of a run that has reached its last step through `FAULTS` faults, at random steps."""
    chaos, rng = Chaos(disk, devices), np.random.default_rng(seed)
    steps = np.sort(rng.choice(np.arange(15, STEPS - 15), FAULTS, replace=False))
    try:
        for step, fault in zip(steps, itertools.cycle(FAULT_KINDS)):
            if chaos.reaches(step):
                fault(chaos)
        _, err = chaos.process.communicate(timeout=600)
    finally:
        chaos.process.kill()
    assert chaos.process.returncode == 0, err
    assert len(chaos.seen) == len(FAULT_KINDS), chaos.seen
    return chaos.workdir


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    run("train", *TRAIN, "--workdir", str(workdir), devices=1)
    return workdir


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_thousand_steps_under_faults_end_in_the_same_bits(undisturbed, disk):
    workdir = disturbed(disk, devices=(1,), seed=0)
    assert digest(workdir, STEPS) == digest(undisturbed, STEPS)
    expected = {row["step"]: row["loss"] for row in metrics(undisturbed)}
    found = [(row["step"], row["loss"]) for row in metrics(workdir) if "loss" in row]
    assert len(dict(found)) == len(found), "no step is logged twice"
    assert all(expected[step] == loss for step, loss in found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_with_another_number_of_devices_after_each_fault_the_state_is_the_same_but_for_rounding(
    undisturbed, disk
):
    workdir = disturbed(disk, devices=(1, 2, 4), seed=1)
    expected, found = arrays(undisturbed, STEPS), arrays(workdir, STEPS)
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        atol = ROUNDING * float(np.abs(array).max())
        np.testing.assert_allclose(found[path], array, rtol=0, atol=atol, err_msg=path)
