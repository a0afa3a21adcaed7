"""Goodput: the seconds of a run are all accounted for, by name."""

import time

import pytest

from jaxdiff.training import loop
from jaxdiff.training.goodput import BADPUT, Goodput
from tests.training import toy
from tests.training.test_loop import logged, run


def test_seconds_of_each_kind_and_the_rest():
    goodput = Goodput(time.monotonic() - 1.0)
    with goodput.spent("save"):
        time.sleep(0.2)
    time.sleep(0.3)
    found = goodput.scalars()
    assert found["badput/start"] == pytest.approx(1.0, abs=0.05)
    assert found["badput/save"] == pytest.approx(0.2, abs=0.1)
    assert found["goodput"] == pytest.approx(0.3 / 1.5, abs=0.1)
    assert found["goodput"] * goodput.elapsed + goodput.lost == pytest.approx(goodput.elapsed, rel=0.01)
    assert "save 0." in str(goodput)


def test_a_run_names_where_its_time_went(tmp_path, capsys):
    def slow(start):
        for step, batch in enumerate(toy.batches(start), start):
            time.sleep(0.3 if step >= 2 else 0.0)
            yield batch

    hook = loop.Hook(4, lambda state, step: time.sleep(0.5))
    around = loop.Surroundings(began=time.monotonic() - 2.0)
    run(tmp_path, 6, slow, hooks=[hook], parts={"surroundings": around})
    last = logged(tmp_path)[-1]
    assert set(BADPUT) == {name.removeprefix("badput/") for name in last if name.startswith("badput/")}
    assert last["badput/start"] >= 2.0
    assert last["badput/data"] >= 4 * 0.3
    assert 0.5 <= last["badput/evaluate"] < 1.0
    assert last["badput/compile"] > 0
    assert 0.0 <= last["goodput"] < 1.0
    assert "goodput " in capsys.readouterr().out.splitlines()[-1]


def test_steps_that_are_trained_again_are_a_restart(tmp_path):
    def fail(start):
        for step, batch in enumerate(toy.batches(start), start):
            time.sleep(0.1)
            if step >= 6:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 8, fail)  # step 4 is saved, and step 6 was logged
    state = run(tmp_path, 8)
    assert int(state.step) == 8
    assert logged(tmp_path)[-1]["badput/restart"] > 0
