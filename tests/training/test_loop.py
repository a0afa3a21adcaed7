import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from jaxdiff.errors import RunFailure, UserError
from jaxdiff.training import loop
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.ema import Ema
from jaxdiff.training.retention import Retention
from tests.training import toy

TESTS = pathlib.Path(__file__).parent.parent


def run(workdir, steps, batches=toy.batches, hooks=(), devices=1, task=None, parts=None, **settings):
    settings = {"log_every": 2, "checkpoint_every": 4, "keep": 3, "accumulation": 1, "seed": 0, **settings}
    settings.setdefault("keep_also", None)
    return loop.run(
        task or toy.Linear(dropout=True), batches, types.SimpleNamespace(steps=steps, **settings),
        optimizer=toy.ADAM, ema=Ema(), mesh=toy.mesh(devices), workdir=workdir, hooks=hooks,
        **(parts or {}),
    )  # fmt: skip


def logged(workdir):
    return [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.spread(1)
@pytest.mark.parametrize("kind", [toy.Linear, toy.Recalling])
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path, kind):
    task = kind(dropout=True)
    straight = run(tmp_path / "straight", 12, task=task)
    run(tmp_path / "halves", 6, task=task)
    resumed = run(tmp_path / "halves", 12, task=task)
    assert toy.sha(resumed) == toy.sha(straight)
    losses = [[row["loss"] for row in logged(tmp_path / name)] for name in ("straight", "halves")]
    assert losses[0] == losses[1]
    assert [row["step"] for row in logged(tmp_path / "halves")] == [2, 4, 6, 8, 10, 12]


def test_a_finished_run_returns_its_state_without_training(tmp_path, capsys):
    done = run(tmp_path, 4)
    capsys.readouterr()
    assert toy.sha(
        run(tmp_path, 4, batches=lambda start: pytest.fail("a finished run reads data"))
    ) == toy.sha(done)
    assert "the run is finished" in capsys.readouterr().out


def test_fewer_steps_than_are_done_are_said_and_a_damaged_step_is_not_done(tmp_path, caplog):
    run(tmp_path, 8)
    run(tmp_path, 6)
    assert "steps=6: nothing is left to train, since the newest intact checkpoint has step 8" in caplog.text
    caplog.clear()
    (tmp_path / "checkpoints" / "8" / "state" / "_METADATA").write_text("{}")
    run(tmp_path, 6)
    assert checkpoints(tmp_path) == [4, 6]
    assert "nothing is left" not in caplog.text


def test_a_killed_run_continues_and_writes_no_row_twice(tmp_path):
    def mortal(start):
        for step, batch in enumerate(toy.batches(start), start):
            if step == 7:
                raise OSError("the disk with the data is gone")
            yield batch

    with pytest.raises(OSError, match="gone"):
        run(tmp_path / "died", 8, batches=mortal)
    assert [row["step"] for row in logged(tmp_path / "died")] == [2, 4, 6]
    assert checkpoints(tmp_path / "died") == [4, 7], "what was trained before the data failed is saved"
    resumed = run(tmp_path / "died", 8)
    assert [row["step"] for row in logged(tmp_path / "died")] == [2, 4, 6, 8]
    assert toy.sha(resumed) == toy.sha(run(tmp_path / "straight", 8))


def test_hooks_run_on_their_steps_and_at_the_end(tmp_path):
    calls = []

    def hook(state, step):
        calls.append((step, int(state.step)))
        return {"answer": 42.0}

    run(tmp_path, 5, hooks=[loop.Hook(2, hook)])
    assert calls == [(2, 2), (4, 4), (5, 5)]
    assert [row["step"] for row in logged(tmp_path) if "answer" in row] == [2, 4, 5]


def test_a_hook_that_fails_costs_its_output_only(tmp_path, caplog):
    def hook(state, step):
        if step == 2:
            raise UserError("images[0]: expected finite values, got NaN")
        return {"answer": 42.0}

    run(tmp_path, 5, hooks=[loop.Hook(2, hook)])
    assert [row["step"] for row in logged(tmp_path) if "answer" in row] == [4, 5]
    assert caplog.messages == ["step 2: images[0]: expected finite values, got NaN; training goes on"]


def test_the_best_checkpoint_by_a_metric_stays_and_nan_is_never_the_best(tmp_path):
    values = {1: 3.0, 2: 1.0, 3: np.nan, 4: 2.0, 5: 4.0, 6: 5.0}
    hook = loop.Hook(1, lambda state, step: {"fid": values[step]})
    run(tmp_path, 6, hooks=[hook], keep=1, checkpoint_every=4, keep_also=Retention(best="fid"))
    assert checkpoints(tmp_path) == [2, 6]


def test_a_metric_of_another_name_is_warned_of_with_the_names_that_were_measured(tmp_path, caplog):
    hook = loop.Hook(2, lambda state, step: {"recall": 0.5, "samples": np.zeros((2, 2, 3), np.uint8)})
    run(tmp_path / "a", 4, hooks=[hook], keep_also=Retention(best="recal"))
    assert caplog.messages == ["keep_also.best='recal': no number of this name was measured, but recall"]
    caplog.clear()
    run(tmp_path / "b", 4, hooks=[hook], keep_also=Retention(best="recall"))
    assert not caplog.messages


def test_one_bad_batch_costs_one_step(tmp_path):
    state = run(tmp_path, 4, batches=lambda start: toy.batches(start, poison=(1,)))
    rows = logged(tmp_path)
    assert [row["skipped"] for row in rows] == [1, 0]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert int(state.step) == 4


def test_a_run_without_a_finite_loss_stops_with_its_step(tmp_path):
    with pytest.raises(RunFailure, match=r"step 9: .* since step 4, got 5 in a row .* batch/y"):
        run(tmp_path, 40, batches=lambda start: toy.batches(start, poison=range(4, 100)))
    assert checkpoints(tmp_path) == [4]
    assert logged(tmp_path)[-1]["loss"] is None


def test_a_failed_checkpoint_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    def full_after_two(self, step, state, save=Checkpoints.save):
        if step in (4, 6):
            raise RunFailure(f"step {step} was not saved: no space left")
        return save(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", full_after_two)
    run(tmp_path, 9, checkpoint_every=2)
    assert checkpoints(tmp_path) == [2, 8, 9]
    assert "step 6 was not saved: no space left; training goes on" in caplog.text
    with pytest.raises(RuntimeError, match="step 6 was not saved"):
        run(tmp_path / "short", 6)


def test_batch_that_does_not_divide_is_an_error_before_compiling(tmp_path):
    with pytest.raises(UserError, match=r"batch_size=16: .* use 12 or 24"):
        run(tmp_path, 4, devices=4, accumulation=3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_its_step_and_handlers_are_restored(tmp_path, number):
    before = signal.getsignal(number)
    kill = loop.Hook(3, lambda state, step: os.kill(os.getpid(), number) if step == 3 else None)
    with pytest.raises(loop.Stopped) as stopped:
        run(tmp_path, 8, hooks=[kill])
    assert (stopped.value.signal_number, stopped.value.step) == (number, 4)
    assert checkpoints(tmp_path) == [4]
    assert signal.getsignal(number) == before


def test_second_interrupt_acts_at_once(tmp_path):
    def interrupt_twice(state, step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 8, hooks=[loop.Hook(1, interrupt_twice)])


SCRIPT = """
import sys, time
from jaxdiff.training import loop
from jaxdiff.training.checkpoint import Checkpoints
from tests.training import test_loop, toy

def slow(start):
    for batch in toy.batches(start):
        time.sleep(float(sys.argv[2]))
        yield batch

try:
    state = test_loop.run(sys.argv[1], 12, batches=slow, log_every=1, checkpoint_every=100)
except loop.Stopped as stop:
    sys.exit(75)
print(toy.sha(state))
"""


def test_a_terminated_process_can_be_continued_exactly(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-u", "-c", SCRIPT, str(tmp_path / "killed")]
    with subprocess.Popen([*command, "0.5"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if re.match(r"step +3/", line):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 75
    assert len(checkpoints(tmp_path / "killed")) == 1
    assert 3 <= checkpoints(tmp_path / "killed")[0] < 12
    again = subprocess.run([*command, "0"], env=environment, capture_output=True, text=True, check=True)
    straight = run(tmp_path / "straight", 12, checkpoint_every=100)
    assert again.stdout.splitlines()[-1] == toy.sha(straight)
    assert [row["step"] for row in logged(tmp_path / "killed")] == list(range(1, 13))


def test_state_is_the_same_on_one_device_and_eight(tmp_path):
    one, eight = (run(tmp_path / str(devices), 3, devices=devices) for devices in (1, 8))
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: np.allclose(x, y, atol=1e-6), one, eight)))
