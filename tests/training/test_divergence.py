"""Updates that are not finite: skipped, passed over once, and the end of a run that does not recover."""

import json
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.errors import RunFailure
from jaxdiff.training import loop
from jaxdiff.training.fault_tolerance import FaultTolerance
from jaxdiff.training.power_ema import PowerEma
from jaxdiff.training.snapshots import Snapshots
from jaxdiff.training.step import Frozen
from tests.training import toy
from tests.training.test_loop import checkpoints, logged, run

BAD = range(5, 10)
"""Positions of batches with NaN: as many as a run accepts in a row. The checkpoint before them is that of step 4."""


def bad(start, positions=BAD):
    return toy.batches(start, poison=positions)


def without_the_window(start):
    """The batches of a run that has never seen those of the positions 4 to 9."""
    return (toy.batch(step if step < 4 else step + 6) for step in range(start, 1000))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The state of a run that passes over the window from the start, by number of devices."""
    return {
        devices: run(tmp_path_factory.mktemp("run"), 14, without_the_window, devices=devices)
        for devices in (1, 8)
    }


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_after_the_window_a_run_is_one_that_has_passed_over_it_from_the_start(
    tmp_path, undisturbed, devices, caplog
):
    state = run(tmp_path, 14, bad, devices=devices)
    assert toy.sha(state) == toy.sha(undisturbed[devices])
    assert "going back to step 4, and passing over the batches of steps 5 to 10" in caplog.text
    assert [row["step"] for row in logged(tmp_path)] == [2, 4, 6, 8, 10, 12, 14]
    assert sum(row["skipped"] for row in logged(tmp_path)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("position", [8, 12, 15])
def test_a_run_that_is_killed_before_or_after_going_back_ends_in_the_same_state(
    tmp_path, undisturbed, position
):
    def mortal(start):
        for at, batch in enumerate(bad(start), start):
            if at == position:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(loop.Stopped):
        run(tmp_path, 14, mortal)
    assert toy.sha(run(tmp_path, 14, bad)) == toy.sha(undisturbed[1])
    assert [row["step"] for row in logged(tmp_path)][-1] == 14


def test_no_state_is_saved_while_updates_are_skipped(tmp_path, caplog):
    run(tmp_path, 13, lambda start: bad(start, (6, 7)), keep=9)
    assert checkpoints(tmp_path) == [4, 12, 13]
    assert "step 8: not saved, since the last 2 updates were skipped" in caplog.text


@pytest.mark.slow
def test_a_signal_while_updates_are_skipped_saves_nothing_and_says_so(tmp_path):
    def stopping(start):
        for at, batch in enumerate(bad(start, (5, 6)), start):
            if at == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(loop.Stopped, match="SIGTERM at step 7; step 4 is saved"):
        run(tmp_path, 12, stopping)
    assert checkpoints(tmp_path) == [4]
    straight = run(tmp_path / "straight", 12, lambda start: bad(start, (5, 6)))
    assert toy.sha(run(tmp_path, 12, lambda start: bad(start, (5, 6)))) == toy.sha(straight)


@pytest.mark.slow
def test_fifty_batches_of_nan_end_a_run_that_no_restart_moves(tmp_path):
    def batches(start):
        return ({**batch, "index": np.arange(toy.COUNT)} for batch in bad(start, range(5, 55)))

    for _ in range(2):
        with pytest.raises(RunFailure, match=r"since step 4, .*batch/y") as error:
            run(tmp_path, 40, batches, parts={"files": {"config.json": '{"seed": 0}'}})
        assert len(str(error.value).splitlines()) == 1
        assert checkpoints(tmp_path) == [4]
        (file,) = (tmp_path / "diverged").iterdir()
        report = json.loads(file.read_text())
        assert report["config"] == {"seed": 0}
        assert report["indices"] == list(range(toy.COUNT))
        assert (report["step"], report["position"]) == (5, 10), (
            "the first batch after those of the steps 5 to 10"
        )
        batch = toy.batch(report["position"], poison=range(5, 55))
        assert not np.isfinite(batch["y"]).all()
        assert {"batch/y", "loss", "gradient/kernel", "gradient/bias"} <= set(report["not_finite"])
        assert not [name for name in report["not_finite"] if name.startswith(("parameters", "batch/x"))]


@pytest.mark.slow
def test_fifty_batches_of_nan_cost_fifty_updates_where_so_many_are_accepted(tmp_path):
    parts = {"tolerance": FaultTolerance(max_skipped=51)}
    lost = run(tmp_path, 60, lambda start: bad(start, range(5, 55)), parts=parts)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lost))
    assert sum(row["skipped"] for row in logged(tmp_path)) == 50


def test_a_run_without_a_checkpoint_goes_back_to_its_start(tmp_path):
    state = run(tmp_path / "bad", 8, lambda start: bad(start, range(5)))
    later = run(tmp_path / "later", 8, lambda start: toy.batches(start + 5))
    assert toy.sha(state) == toy.sha(later)


@pytest.mark.slow
def test_averages_of_a_pass_that_was_given_up_are_deleted(tmp_path):
    profile = PowerEma((0.1,), snapshot_every=3)

    def train(workdir, batches):
        return loop.run(
            toy.LINEAR,
            batches,
            _settings(14),
            optimizer=toy.ADAM,
            ema=profile,
            mesh=toy.mesh(),
            workdir=workdir,
        )

    states = train(tmp_path / "bad", bad), train(tmp_path / "straight", without_the_window)
    assert toy.sha(states[0]) == toy.sha(states[1])
    read = []
    for name in ("bad", "straight"):
        with Snapshots(tmp_path / name, read_only=True) as snapshots:
            assert snapshots.steps() == [3, 6, 9, 12, 14]
            read.append([toy.sha(snapshots.restore(step, 0, states[0].ema)) for step in snapshots.steps()])
    assert read[0] == read[1]


def _settings(steps):
    return types.SimpleNamespace(
        steps=steps, log_every=2, checkpoint_every=4, keep=3, keep_also=None, accumulation=1, seed=0
    )


class Faulty(toy.Linear):
    """A task that fails at step 2: its loss is NaN, or only its gradient is, or a weight overflows."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def loss(self, params, context, examples, key, train):
        losses, metrics = super().loss(params, context, examples, key, train)
        now = context.step == 2
        if self.kind == "loss":
            losses = jnp.where(now, jnp.nan, losses)
        elif self.kind == "gradient":  # sqrt(0) is finite, and its derivative is not
            losses = losses + jnp.sqrt(jnp.where(now, 0.0, 1.0) * (1 + params["bias"][0] ** 2))
        else:
            losses = losses + jnp.where(now, 1e6, 0.0) * params["bias"][0]
        return losses, metrics


OVERFLOWING = optax.stateless(
    lambda grads, _: jax.tree.map(lambda g: jnp.where(jnp.abs(g) > 1e5, g * 1e38, -0.01 * g), grads)
)
"""Gradient descent that turns a large gradient into an infinite update."""


@pytest.mark.spread(1)
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("kind", ["loss", "gradient", "parameter"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_step(kind, devices):
    mesh, task, states = toy.mesh(devices), Faulty(kind), []
    step, initial, shardings = toy.program(mesh, OVERFLOWING, 1, task)
    state = jax.tree.map(lambda x, where: jax.device_put(x, where, may_alias=False), initial, shardings)
    skipped = []
    for number in range(4):
        state, metrics = step(state, toy.batch(number), Frozen())
        skipped.append(float(metrics["skipped"]))
        states.append(jax.device_get(state))
    assert skipped == [0, 0, 1, 0]
    assert toy.sha(states[2].replace(step=states[1].step)) == toy.sha(states[1])
    assert toy.sha(states[3].params) != toy.sha(states[2].params)
