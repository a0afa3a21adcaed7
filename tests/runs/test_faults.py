"""Faults of a run as users meet them: real commands, signals, processes and disks."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

import jaxdiff.sample
import jaxdiff.train
from jaxdiff.errors import RunFailure, UserError
from jaxdiff.runs.lock import lock
from tests.commands import DIGITS, TINY, digest, metrics, run, start

EVERY = 4
TRAIN = (
    "--config", DIGITS, *TINY, f"--config.checkpoint_every={EVERY}", "--config.log_every=1",
    "--config.evaluation=None", "--config.test_data=None",
    "--config.optimizer.schedule=jaxdiff.training.optimizer:Constant",
)  # fmt: skip


def arguments(workdir, steps, *flags):
    return [*TRAIN, "--workdir", str(workdir), f"--config.steps={steps}", *flags]


def train(workdir, steps, *flags):
    """The command in this process."""
    jaxdiff.train.main(arguments(workdir, steps, *flags))


def sample(workdir, name, *flags):
    jaxdiff.sample.main(["--workdir", str(workdir), "--n", "1", "--out", str(workdir / name), *flags])


def command(workdir, steps, *flags, code=0):
    """The command in a process of its own."""
    return run("train", *arguments(workdir, steps, *flags), code=code)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints 4 and 8."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(workdir, 2 * EVERY)
    return workdir


@pytest.fixture
def copy(trained, tmp_path):
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def flip(folder):
    """Flip a bit in the largest file of a folder, and return the file."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    return path


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_kept_and_trained_again(trained, copy, caplog):
    path = flip(copy / "checkpoints" / "8")
    sample(copy, "x.png")
    (warning,) = caplog.messages
    assert f"{path}: not as it was saved" in warning
    assert names(copy) == ["4", "8"]  # sampling changes nothing
    train(copy, 2 * EVERY)
    assert "8.corrupt" in caplog.text
    assert names(copy) == ["4", "8", "8.corrupt"]
    again, before = ([(row["step"], row["loss"]) for row in metrics(folder)] for folder in (copy, trained))
    np.testing.assert_allclose(again, before, rtol=1e-5)


@pytest.mark.slow
def test_a_chosen_step_that_is_damaged_is_an_error(copy):
    flip(copy / "checkpoints" / "8")
    with pytest.raises(RunFailure, match=r"8/state/.* not as it was saved"):
        sample(copy, "x.png", "--step", "8")
    sample(copy, "y.png", "--step", "4")


@pytest.mark.slow
def test_without_an_intact_checkpoint_nothing_begins_anew_unless_wanted(copy, capsys):
    for step in (4, 8):
        flip(copy / "checkpoints" / str(step))
    log = (copy / "metrics.jsonl").read_text()
    for attempt in (lambda: train(copy, 12), lambda: train(copy, 12), lambda: sample(copy, "x.png")):
        with pytest.raises(RunFailure, match=r"checkpoints=.* got 2 damaged"):
            attempt()
        assert names(copy) == ["4", "8"]
        assert (copy / "metrics.jsonl").read_text() == log
    train(copy, 4, "--restart")
    assert f"{copy}/before_restart" in capsys.readouterr().out
    assert names(copy) == ["4"]
    assert names(copy / "before_restart") == ["4", "8"]
    assert (copy / "before_restart" / "metrics.jsonl").read_text() == log


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [pathlib.Path.unlink, lambda file: file.write_text("{")], ids=["lost", "cut"]
)
def test_a_lost_config_is_found_in_a_checkpoint(copy, damage):
    damage(copy / "config.json")
    source = copy / "checkpoints" / "8" / "config.json"
    for attempt in (lambda: train(copy, 8), lambda: sample(copy, "x.png")):
        with pytest.raises(UserError, match=f"Fix: copy {source} there"):
            attempt()
    shutil.copy(source, copy)
    sample(copy, "x.png")


@pytest.mark.slow
def test_a_second_writer_is_refused(copy):
    with lock(copy), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        train(copy, 12)
    assert names(copy) == ["4", "8"]


@pytest.mark.slow
def test_twenty_kills_during_saves_lose_at_most_the_interval_being_saved(tmp_path):
    workdir, rng, steps = tmp_path / "run", np.random.default_rng(0), 400
    flags = ("--config.task.denoiser.network.levels[1].width=128",)
    folder, kills = workdir / "checkpoints", 0
    while kills < 20:
        process = start("train", *TRAIN, *flags, "--workdir", str(workdir), f"--config.steps={steps}")
        complete = set(names(workdir)) if folder.exists() else set()
        _wait(lambda known=complete: folder.exists() and set(names(workdir)) - known, process)
        time.sleep(rng.uniform(0, 0.5))
        _wait(lambda: any(".orbax-checkpoint-tmp" in name for name in names(workdir)), process)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            break
        drafts = [int(name.partition(".")[0]) for name in names(workdir) if "tmp" in name]
        steps_left = [int(name) for name in names(workdir) if name.isdecimal()]
        if drafts:
            kills += 1
            assert max(drafts) - max(steps_left, default=0) <= EVERY
    assert kills >= 20
    last = max(int(name) for name in names(workdir) if name.isdecimal()) + EVERY
    command(workdir, last, *flags)
    command(tmp_path / "straight", last, *flags)
    assert digest(workdir, last) == digest(tmp_path / "straight", last)
    assert [row["step"] for row in metrics(workdir)] == list(range(1, last + 1))


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    if (
        os.name != "posix"
        or shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--config.sample_every=2",)], ids=["save", "grid"])
def test_a_full_disk_ends_no_training_and_the_run_continues_once_there_is_room(
    disk, trained, tmp_path, flags
):
    workdir = disk / "run"
    filler = disk / "filler"
    shutil.copytree(trained, workdir)
    empty = shutil.disk_usage(disk).free
    one = sum(path.stat().st_blocks * 512 for path in (workdir / "checkpoints" / "8").rglob("*"))
    filler.write_bytes(bytes(empty - 3 * one // 2))  # one more checkpoint fits
    flags = (*flags, "--config.keep=100")
    _, err = command(workdir, 40, *flags, code=1)
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith(("warning:", "error:"))]
    assert lines[-1].startswith("error: step 40 was not saved")
    assert "No space left on device" in lines[-1]
    assert "there: 4, 8, 12." in lines[-1]
    assert not [name for name in names(workdir) if not name.isdecimal()]
    filler.unlink()
    command(workdir, 40, *flags)
    undisturbed = pathlib.Path(shutil.copytree(trained, tmp_path / "undisturbed"))
    command(undisturbed, 40)
    assert digest(workdir, 40) == digest(undisturbed, 40)
    assert [row["step"] for row in metrics(workdir) if "loss" in row] == list(range(1, 41))


def _wait(condition, process, seconds=120):
    """Wait until a condition holds, or a process has ended."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
