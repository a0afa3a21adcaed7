import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxdiff.training.metrics import RunningMean, open_writers


def add(means, loss, skipped=0.0):
    means.add({"loss": jnp.float32(loss), "skipped": jnp.float32(skipped)})


def test_means_are_over_the_steps_that_were_not_skipped():
    means = RunningMean()
    add(means, 1.0)
    add(means, np.nan, skipped=1.0)
    add(means, 4.0)
    assert means.steps == 3
    assert means.take() == {"loss": 2.5, "skipped": 1.0}
    add(means, 7.0)
    assert means.take() == {"loss": 7.0, "skipped": 0.0}


def test_window_of_skipped_steps_has_no_mean():
    means = RunningMean()
    add(means, np.inf, skipped=1.0)
    values = means.take()
    assert math.isnan(values["loss"])
    assert values["skipped"] == 1.0


def rows(workdir):
    return [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_removes_the_rows_that_it_writes_again(tmp_path):
    writers = open_writers(tmp_path, 0)
    for step in range(1, 6):
        writers.write(step, {"loss": float(step)})
    writers.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # the process was killed here
    writers = open_writers(tmp_path, 3)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    writers.write(4, {"loss": 40.0})
    writers.close()
    assert rows(tmp_path)[2:] == [{"step": 3, "loss": 3.0}, {"step": 4, "loss": 40.0}]


def test_every_row_is_json_also_for_nan(tmp_path):
    writers = open_writers(tmp_path, 0)
    writers.write(1, {"loss": math.nan})
    writers.close()
    assert rows(tmp_path) == [{"step": 1, "loss": None}]


def test_tensorboard_reads_scalars_and_images_back(tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    writers = open_writers(tmp_path, 0)
    writers.write(2, {"loss": jnp.float32(0.5), "samples": image})
    writers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 0.5)]
    assert [(event.height, event.width) for event in events.Images("samples")] == [(4, 6)]
    assert rows(tmp_path) == [{"step": 2, "loss": 0.5}]
    assert capsys.readouterr().out == "step 2: loss 0.5000\n"


@pytest.mark.parametrize("values", [{}, {"samples": np.zeros((2, 2, 3), np.uint8)}])
def test_a_step_without_scalars_writes_no_line(tmp_path, capsys, values):
    writers = open_writers(tmp_path, 0)
    writers.write(1, values)
    writers.close()
    assert rows(tmp_path) == []
    assert capsys.readouterr().out == ""


def lines(tmp_path, capsys, *steps):
    """The console's lines of a run to step 1000."""
    writers = open_writers(tmp_path, 0, 1000)
    for step, values in steps:
        writers.write(step, values)
    writers.close()
    return capsys.readouterr().out.splitlines()


def test_a_log_line_shows_step_loss_speed_and_remaining_time(tmp_path, capsys):
    values = {"loss": 1.07604, "grad_norm": 2.3221, "skipped": 0.0, "images_per_second": 539.31}
    other = {"loss": 0.9, "grad_norm": 0.020518, "skipped": 0.0, "images_per_second": 12345.6}
    first, second, last = lines(tmp_path, capsys, (25, values), (975, other), (1000, values))
    assert re.fullmatch(
        r"step   25/1000: loss 1\.076     images/s 539\.3     grad_norm 2\.322     \d\d:\d\d left", first
    )
    assert second.startswith("step  975/1000: loss 0.9000    images/s 12346     grad_norm 0.02052")
    for name in ("images/s", "grad_norm", " left"):
        assert first.index(name) == second.index(name)
    assert last == "step 1000/1000: loss 1.076     images/s 539.3     grad_norm 2.322"


def test_skipped_steps_are_shown_last_and_only_if_there_are_any(tmp_path, capsys):
    means = {"loss": math.nan, "skipped": 2.0, "grad_norm": 1.5}
    (line,) = lines(tmp_path, capsys, (1000, means))
    assert line == "step 1000/1000: loss nan       grad_norm 1.500     skipped 2"


def test_a_log_without_a_terminal_has_no_control_characters(tmp_path, capfd):
    (line,) = lines(tmp_path, capfd, (500, {"loss": 1.0}))
    assert line.isprintable()
