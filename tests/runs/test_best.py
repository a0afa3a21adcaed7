"""The best checkpoint by a metric: kept, found and sampled, also after a run was killed."""

import json
import signal
import time

import numpy as np
import pytest

from jaxdiff.cli.checkpoints import step_of
from jaxdiff.errors import UserError
from jaxdiff.runs.best import best_step
from jaxdiff.train import train
from tests import commands
from tests.commands import metrics
from tests.runs import digits

LOSS = ("held_out_loss", "jaxdiff.evaluation.held_out:HeldOutLoss(every=2, n=16, bands=2)")
WORST = "jaxdiff.training.retention:Retention(best='held_out_loss', better='higher')"
BEST = "jaxdiff.training.retention:Retention(best='held_out_loss')"


def trained(workdir, steps, *changes):
    """A short run that measures the held-out loss on its training digits."""
    config = digits.config(steps)
    config.test_data = config.data.copy_and_resolve_references()
    for path, text in (LOSS, ("keep", "1"), ("optimizer.schedule.warmup_steps", "1"), *changes):
        digits.app.override(config, path, text)
    return train(config, str(workdir), source=digits.SOURCE, test_source=digits.SOURCE)


def measured(workdir, name="held_out_loss"):
    """Step -> value, from the log."""
    return {row["step"]: row[name] for row in metrics(workdir) if name in row}


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.mark.slow
def test_the_best_stays_through_a_continuation_and_is_found(tmp_path):
    """The loss falls, so that the checkpoint of highest loss is an early one, which `keep=1` alone would delete."""
    for keep_also, choose, stops in ((WORST, max, (4, 8)), (BEST, min, (4,))):
        workdir = tmp_path / choose.__name__
        for steps in stops:
            trained(workdir, steps, ("keep_also", keep_also))
            values = measured(workdir)
            assert sorted(values) == list(range(2, steps + 1, 2))
            expected = choose(values, key=values.get)
            assert kept(workdir) == sorted({expected, steps})
            assert best_step(str(workdir)) == step_of("best", str(workdir)) == expected
    assert best_step(str(tmp_path / "max")) < 8


@pytest.mark.slow
def test_the_last_evaluation_is_logged_once_and_rates_its_checkpoint(tmp_path):
    name = "evaluation/guidance_1/recall"
    keep = f"jaxdiff.training.retention:Retention(best='{name}', better='higher', best_count=9)"
    evaluation = "jaxdiff.evaluation.reports.class_conditional:ImageEvaluation(n=20, every=2)"
    for _ in range(2):
        trained(tmp_path, 4, ("evaluation", evaluation), ("keep_also", keep))
        values = measured(tmp_path, name)
        assert [row["step"] for row in metrics(tmp_path) if name in row] == [2, 4]
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert values[4] == report["samples"][0]["recall"]
    assert {
        step: json.loads((tmp_path / f"checkpoints/{step}/metric.json").read_text()) for step in (2, 4)
    } == {step: {name: value} for step, value in values.items()}
    assert (tmp_path / "evaluation" / "00000004.png").exists()
    assert scalars_of_tensorboard(tmp_path, name) == pytest.approx(values)


def scalars_of_tensorboard(workdir, name):
    """Step -> value, as TensorBoard reads its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.mark.slow
def test_after_a_kill_the_same_command_keeps_the_best_and_samples_it(tmp_path):
    workdir = tmp_path / "run"
    words = ["--config", commands.DIGITS, *commands.TINY, "--config.steps=30", "--config.checkpoint_every=2",
             "--config.log_every=2", "--config.keep=1", "--config.evaluation=None", f"--config.keep_also={WORST}",
             f"--config.held_out_loss={LOSS[1]}", "--workdir", str(workdir)]  # fmt: skip
    killed = commands.start("train", *words, devices=1)
    log, patience = workdir / "metrics.jsonl", time.monotonic() + 400

    def measurements():
        """Bands of held-out losses in the log: two for each measurement."""
        return log.read_text().count("held_out_loss/") if log.exists() else 0

    while measurements() < 4 and time.monotonic() < patience:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert 4 <= measurements() < 30
    commands.run("train", *words, devices=1)
    values = measured(workdir)
    assert sorted(values) == list(range(2, 31, 2))
    best = max(values, key=values.get)
    assert best_step(str(workdir)) == best < 30
    for step in ("best", str(best)):
        out, _ = commands.run("sample", "--workdir", str(workdir), "--step", step, "--n", "2", "--label", "3",
                              "--out", str(tmp_path / f"{step}.npy"), devices=1)  # fmt: skip
        assert (f"the best checkpoint is that of step {best}" in out) == (step == "best")
    np.testing.assert_array_equal(np.load(tmp_path / "best.npy"), np.load(tmp_path / f"{best}.npy"))


def folder(tmp_path, keep_also):
    """A run without checkpoints."""
    config = json.loads(digits.config(2).to_json())
    (tmp_path / "config.json").write_text(json.dumps({**config, "keep_also": keep_also}))
    return str(tmp_path)


def test_a_run_without_a_best_checkpoint_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"--step='best': expected a run with keep_also=.*got a run without it"
    ):
        step_of("best", folder(tmp_path, None))
    block = {"target": "jaxdiff.training.retention:Retention", "best": "fid"}
    with pytest.raises(
        UserError, match=r"--step='best': expected a checkpoint of .* with the metric fid, got none"
    ):
        step_of("best", folder(tmp_path, block))


def test_other_words_are_refused_and_numbers_are_steps():
    assert step_of(None, "nowhere") is None
    assert step_of("250", "nowhere") == 250
    for text in ("last", "-1", "2.5", ""):
        with pytest.raises(UserError, match=f"--step='{text}': expected a whole number or best"):
            step_of(text, "nowhere")


def test_a_metric_that_nothing_measures_is_refused_before_the_run(tmp_path):
    changes = (("held_out_loss", "None"), ("keep_also", BEST))
    with pytest.raises(
        UserError, match=r"config\.keep_also\.best='held_out_loss': expected numbers measured"
    ):
        trained(tmp_path / "run", 2, *changes)
    assert not (tmp_path / "run").exists()
