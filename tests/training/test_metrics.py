import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxdiff.training.metrics import RunningMean, open_writers


def add(means, loss, skipped=0.0):
    means.add({"loss": jnp.float32(loss), "skipped": jnp.float32(skipped)})


def test_means_are_over_the_steps_that_counted():
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


def test_resumed_run_drops_the_rows_that_it_will_write_again(tmp_path):
    writers = open_writers(tmp_path, 0)
    for step in range(1, 6):
        writers.write(step, {"loss": float(step)})
    writers.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # the kill came here
    writers = open_writers(tmp_path, 3)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    writers.write(4, {"loss": 40.0})
    writers.close()
    assert rows(tmp_path)[2:] == [{"step": 3, "loss": 3.0}, {"step": 4, "loss": 40.0}]


def test_every_row_is_json_even_without_a_number(tmp_path):
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
    assert capsys.readouterr().out == "step 2: loss=0.5\n"


@pytest.mark.parametrize("values", [{}, {"samples": np.zeros((2, 2, 3), np.uint8)}])
def test_nothing_to_say_is_not_said(tmp_path, capsys, values):
    writers = open_writers(tmp_path, 0)
    writers.write(1, values)
    writers.close()
    assert rows(tmp_path) == []
    assert capsys.readouterr().out == ""
