"""Limits of time and profiles of a run."""

import gzip
import json
import time

import pytest

from jaxdiff.training import loop
from jaxdiff.training.limits import TimeLimit
from tests.training import toy
from tests.training.test_loop import checkpoints, run


def slow(start):
    for batch in toy.batches(start):
        time.sleep(0.2)
        yield batch


def test_a_limit_leaves_time_for_a_step_and_a_save():
    now = time.monotonic()
    assert not TimeLimit(100.0, now).reached(step=1.0, save=1.0)
    assert TimeLimit(100.0, now - 91.0).reached(step=0.0, save=0.0), "a tenth is left for the end"
    assert TimeLimit(100.0, now).reached(step=30.0, save=20.0)
    assert not TimeLimit(36_000.0, now - 35_600.0).reached(0.0, 0.0), "at most five minutes are left"
    assert TimeLimit(36_000.0, now - 35_701.0).reached(0.0, 0.0)


@pytest.mark.slow
def test_a_run_saves_and_stops_before_its_limit_and_continues_exactly(tmp_path):
    began = time.monotonic()
    parts = {"surroundings": loop.Surroundings(began=began, time_limit=20.0)}
    with pytest.raises(
        loop.Stopped, match=r"the time limit was reached at step (\d+), which is saved"
    ) as stop:
        run(tmp_path / "limited", 10_000, slow, checkpoint_every=10_000, parts=parts)
    assert time.monotonic() - began < 20
    step = stop.value.step
    assert checkpoints(tmp_path / "limited") == [step]
    limited = run(tmp_path / "limited", step + 2)
    assert toy.sha(limited) == toy.sha(run(tmp_path / "straight", step + 2))


@pytest.mark.slow
def test_a_profile_has_events_of_its_steps_for_perfetto_and_tensorboard(tmp_path):
    run(tmp_path, 8, parts={"surroundings": loop.Surroundings(profile=(3, 5))})
    folder = tmp_path / "profile"
    assert list(folder.rglob("*.xplane.pb"))
    (file,) = folder.rglob("perfetto_trace.json.gz")
    with gzip.open(file) as stream:
        events = json.load(stream)["traceEvents"]
    begun = [event for event in events if event.get("name") == "train" and event.get("ph") == "X"]
    assert sorted(int(event["args"]["step_num"]) for event in begun) == [3, 4, 5]
