"""Errors of the first of two real processes reach the second one, which would wait for ever otherwise."""

import pathlib
import re
import socket
import subprocess
import sys

import pytest

from jaxdiff.distributed.first_process import in_first
from tests.commands import ROOT, environment

PROGRAM = """
import pathlib, sys
from unittest import mock
import jax, jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jaxdiff.distributed import runtime
from jaxdiff.distributed.first_process import LONGEST, in_first
from jaxdiff.errors import UserError
from jaxdiff.runs.lock import lock
from jaxdiff.runs.restart import move_aside
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.disk import check_space
from jaxdiff.training.step import TrainState

runtime.start(compile_cache="")
folder = epath.Path(sys.argv[1])
first = jax.process_index() == 0

def fail(error):
    raise error

def locked(folder):
    with lock(folder):
        pass

def damaged(step):
    with Checkpoints(folder / "damaged") as checkpoints:
        checkpoints.newest(lambda step: step)

def save(*arguments, **options):
    if first:
        raise OSError("disk")

def saved_by_one():
    with mock.patch.object(ocp.AsyncCheckpointer, "save", save), Checkpoints(folder / "new") as checkpoints:
        return checkpoints.save(1, TrainState(1, {"bias": jnp.ones(2)}, (), ()))

huge = jax.ShapeDtypeStruct((2**60,), jnp.float32)
for case in (
    lambda: in_first(lambda: 7),
    lambda: in_first(lambda: fail(UserError("n=1: é"))),
    lambda: in_first(lambda: fail(UserError("x" * 2 * LONGEST))),
    lambda: in_first(lambda: fail(OSError("disk"))),
    lambda: check_space(folder / "run" / "checkpoints", huge, 1),
    lambda: locked(folder / "file" / "run"),
    lambda: damaged(3),
    lambda: move_aside(folder / "used"),
    saved_by_one,
    lambda: in_first(lambda: fail(UserError("last"))),
):
    try:
        end = f"returned {case()!r}"
    except Exception as error:
        end = f"{type(error).__name__}: {error}"
    print("end:", end[:200])
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The lines of both processes, in which only the first one sees any fault."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "file").touch()
    (folder / "damaged" / "3").mkdir(parents=True)
    (folder / "used").mkdir()
    (folder / "used" / "metrics.jsonl").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(1, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)),
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends
    return [re.findall("^end: (.*)", out, re.MULTILINE) for out, _ in ends], folder


def test_errors_of_the_first_process_are_those_of_all(printed):
    (first, second), folder = printed
    assert first[:2] == ["returned 7", "UserError: n=1: é"]
    assert second[:2] == ["returned None", "UserError: n=1: é"]
    assert re.fullmatch("UserError: x+", second[2])
    assert (first[3], second[3]) == ("OSError: disk", "RunFailure: disk")
    begins = (
        f"UserError: --workdir={folder}/run: expected room",
        "UserError: --workdir=",
        "RunFailure: checkpoints=",
    )
    for begin, one, other in zip(begins, first[4:7], second[4:7], strict=True):
        assert one.startswith(begin)
        assert other == one


def test_files_are_moved_aside_once(printed):
    (first, second), folder = printed
    assert first[7].startswith("returned PosixGPath")
    assert second[7] == "returned None"
    assert [path.name for path in (folder / "used").iterdir()] == ["before_restart"]
    assert (folder / "used" / "before_restart" / "metrics.jsonl").exists()


def test_a_save_that_fails_in_one_process_stops_no_other(printed):
    """Without a barrier, which the others would not reach."""
    (first, second), _ = printed
    assert first[8].startswith("RunFailure: step 1 was not saved")
    assert second[8] == "returned True"
    assert first[9] == second[9] == "UserError: last"


def test_one_process_keeps_results_and_errors():
    error = KeyError("a")

    def fail():
        raise error

    assert in_first(lambda: pathlib.Path("x")) == pathlib.Path("x")
    with pytest.raises(KeyError) as caught:
        in_first(fail)
    assert caught.value is error
