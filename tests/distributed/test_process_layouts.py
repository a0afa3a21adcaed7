"""Training by real processes: any layout of processes and devices, and any split of the state, is one computation."""

import shutil
import socket

import numpy as np
import pytest

from tests.commands import DIGITS, TINY, arrays, start

STEPS, HALF = 10, 5
TRAIN = (
    "--config", DIGITS, *TINY, f"--config.steps={STEPS}", f"--config.checkpoint_every={HALF}",
    "--config.log_every=1", "--config.evaluation=None", "--config.optimizer.eps=1e-3",
)  # fmt: skip
# Adam divides a gradient by its own size. With its usual eps of 1e-8 it would enlarge rounding where the exact gradient
# is zero, as that of the bias of attention keys is.
LAYOUTS = [(1, 8), (2, 4), (4, 2)]
"""Processes, and devices of each."""

pytestmark = pytest.mark.slow


def train(workdir, processes, devices, *changes):
    """A training by several processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        start(
            "train", *TRAIN, *changes, "--workdir", str(workdir), devices=devices,
            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=str(processes), JAX_PROCESS_ID=str(index),
        )
        for index in range(processes)
    ]  # fmt: skip
    errors = [process.communicate(timeout=900)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)
    return workdir


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    far = {
        name: float(np.abs(found[name].astype(np.float64) - expected[name]).max())
        for name in found
        if not np.allclose(found[name], expected[name], rtol=0, atol=1e-6)
    }
    assert not far


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each layout."""
    return {layout: train(tmp_path_factory.mktemp("layout") / "run", *layout) for layout in LAYOUTS}


def test_the_runs_learn_something(runs):
    """A state that hardly moved would be the same everywhere."""
    before, after = arrays(runs[1, 8], HALF), arrays(runs[1, 8], STEPS)
    moved = [np.abs(after[name] - before[name]).max() for name in after if after[name].dtype == np.float32]
    assert np.median(moved) > 1e-5
    assert max(moved) > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_processes_and_devices_are_interchangeable(runs, layout):
    assert_equal(arrays(runs[layout], STEPS), arrays(runs[LAYOUTS[0]], STEPS))


@pytest.mark.parametrize(("saved", "restored"), [((1, 8), (4, 2)), ((4, 2), (2, 4)), ((2, 4), (1, 8))])
def test_each_layout_continues_from_the_checkpoint_of_another_one(runs, tmp_path, saved, restored):
    folder = tmp_path / "run"
    shutil.copytree(runs[saved], folder)
    shutil.rmtree(folder / "checkpoints" / str(STEPS))
    train(folder, *restored)
    assert_equal(arrays(folder, STEPS), arrays(runs[LAYOUTS[0]], STEPS))


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"tensor": 4}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_a_state_that_is_split_over_processes_learns_as_a_replicated_one(runs, tmp_path, mesh):
    changes = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    assert_equal(arrays(train(tmp_path / "run", 2, 4, *changes), STEPS), arrays(runs[LAYOUTS[0]], STEPS))
