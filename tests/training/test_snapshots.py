"""Snapshots of a run, and averages reconstructed from them."""

import os
import signal
import types

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxdiff.errors import RunFailure, UserError
from jaxdiff.training import loop
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.ema import Ema
from jaxdiff.training.power_ema import PowerEma
from jaxdiff.training.snapshots import Snapshots, reconstruct
from jaxdiff.training.state import abstract_state
from tests.training import toy

KEPT = PowerEma((0.1, 0.05), snapshot_every=10)
STEPS = 80
SLOW = optax.adam(3e-2)


def run(workdir, ema, steps=STEPS, devices=1, batches=toy.batches):
    settings = types.SimpleNamespace(
        keep_also=None, steps=steps, log_every=20, checkpoint_every=20, keep=1, accumulation=1, seed=0
    )
    return loop.run(
        toy.LINEAR, batches, settings, optimizer=SLOW, ema=ema, mesh=toy.mesh(devices), workdir=workdir
    )


def abstract(devices=1):
    return abstract_state(toy.LINEAR, SLOW, toy.mesh(devices)).ema


def distance(a, b):
    parts = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(jnp.sqrt(sum(jnp.sum((x - y) ** 2) for x, y in parts)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder and final state of a run that tracks two lengths and stores snapshots."""
    workdir = tmp_path_factory.mktemp("kept")
    return workdir, run(workdir, KEPT)


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("std", [0.05, 0.07, 0.12])
def test_any_length_is_reconstructed_accurately(trained, tmp_path, std):
    workdir, state = trained
    tracked = run(tmp_path, PowerEma((std,))).ema
    found, step = reconstruct(workdir, KEPT, abstract(), std)
    assert step == STEPS
    away = min(distance(tracked, average) for average in (state.ema, *state.extra_emas, state.params))
    assert distance(found, tracked) < 1e-4 + 0.03 * away
    if std == 0.05:
        assert distance(found, state.extra_emas[0]) < 1e-4


def test_a_run_tracks_each_length_independently(trained, tmp_path):
    _, state = trained
    alone = run(tmp_path, PowerEma((0.05,)))
    assert toy.sha(alone.ema) == toy.sha(state.extra_emas[0])
    assert toy.sha(alone.params) == toy.sha(state.params)
    assert not alone.extra_emas
    assert not (tmp_path / "averages").exists()


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_an_average_of_constant_decay_and_powers_are_tracked_at_once(trained, tmp_path, devices):
    """Each is the average of a run that tracks nothing else, also on a sharded state, and lengths are still found."""
    both = PowerEma(KEPT.stds, KEPT.snapshot_every, samples=Ema(0.9))
    state = run(tmp_path / "both", both, devices=devices)
    alone, powers = (
        run(tmp_path / name, ema, devices=devices) for name, ema in (("a", Ema(0.9)), ("b", KEPT))
    )
    assert toy.sha(state.ema) == toy.sha(alone.ema)
    assert toy.sha(state.extra_emas) == toy.sha((powers.ema, *powers.extra_emas))
    found = [
        reconstruct(tmp_path / folder, ema, abstract(devices), 0.07)[0]
        for folder, ema in (("both", both), ("b", KEPT))
    ]
    assert toy.sha(found[0]) == toy.sha(found[1])


def test_snapshots_hold_the_averages_of_their_steps_alone(trained):
    workdir, state = trained
    with Snapshots(workdir, read_only=True) as snapshots:
        assert snapshots.steps() == list(range(10, STEPS + 1, 10))
        assert toy.sha(snapshots.restore(STEPS, 1, abstract())) == toy.sha((state.ema, *state.extra_emas))
        saved = snapshots.checkpoints.metadata(STEPS)
        assert len(jax.tree.leaves(saved)) == 1 + 2 * len(jax.tree.leaves(abstract()))


def test_an_earlier_step_does_not_depend_on_later_ones(trained, tmp_path):
    workdir, _ = trained
    tracked = run(tmp_path, PowerEma((0.07,)), steps=50).ema
    found, step = reconstruct(workdir, KEPT, abstract(), 0.07, step=50)
    assert step == 50
    assert distance(found, tracked) < 0.03 * distance(
        tracked, run(tmp_path / "other", Ema(), steps=50).params
    )
    with pytest.raises(UserError, match=r"step=9: expected a snapshot up to this step"):
        reconstruct(workdir, KEPT, abstract(), 0.07, step=9)
    with pytest.raises(UserError, match=r"std=0\.5"):
        reconstruct(workdir, KEPT, abstract(), 0.5)


def test_an_interrupted_run_continues_with_all_averages(trained, tmp_path):
    _, straight = trained
    run(tmp_path, KEPT, steps=40)
    assert toy.sha(run(tmp_path, KEPT)) == toy.sha(straight)
    with Snapshots(tmp_path, read_only=True) as snapshots:
        assert snapshots.steps() == list(range(10, STEPS + 1, 10))


def test_a_run_that_stops_at_a_snapshot_stores_it(trained, tmp_path):
    def stopped(start):
        for step, batch in enumerate(toy.batches(start), start + 1):
            if step == 30:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(loop.Stopped, match="SIGTERM at step 30"):
        run(tmp_path, KEPT, batches=stopped)
    assert toy.sha(run(tmp_path, KEPT)) == toy.sha(trained[1])
    with Snapshots(tmp_path, read_only=True) as snapshots:
        assert snapshots.steps() == list(range(10, STEPS + 1, 10))


def test_a_skipped_step_changes_no_average(tmp_path):
    """Otherwise the average would count it as a step."""
    poisoned = run(tmp_path / "a", KEPT, steps=2, batches=lambda start: toy.batches(start, poison=(1,)))
    before = run(tmp_path / "b", KEPT, steps=1)
    assert toy.sha((poisoned.ema, poisoned.extra_emas)) == toy.sha((before.ema, before.extra_emas))


@pytest.mark.slow
def test_snapshots_of_a_sharded_run_match_one_device(trained, tmp_path):
    workdir, _ = trained
    run(tmp_path, KEPT, devices=8)
    one, many = (
        reconstruct(workdir, KEPT, abstract(), 0.07)[0],
        reconstruct(tmp_path, KEPT, abstract(8), 0.07)[0],
    )
    assert len(jax.tree.leaves(many)[0].sharding.device_set) == 8
    assert distance(jax.device_get(one), jax.device_get(many)) < 1e-3


def test_a_failed_snapshot_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    def full(self, step, state):
        raise RunFailure("step 3 was not saved: no space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with Snapshots(tmp_path) as snapshots:
        state = types.SimpleNamespace(params=(), ema=jnp.ones(2), replace=lambda **parts: state)
        assert snapshots.save(state, 3) == {}
        assert snapshots.steps() == []
    assert "step 3" in caplog.text
