import errno
import json
import math
import re
import threading
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxdiff.training.writers import WAITING, Background, JsonLines, TensorBoard, open_writers


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
    writers.drain()
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


def events(workdir):
    return EventAccumulator(str(workdir)).Reload()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00rubbish\n", b"[1]\n", b'{"step": "x"}\n', b'{"loss": 1}\n']
)
def test_damaged_rows_are_dropped(tmp_path, content):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 0.5}\n' + content)
    JsonLines(file, 5).write(6, {"loss": 0.25}, {})
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 6, "loss": 0.25}]


def test_rows_that_could_not_be_written_come_before_the_next(tmp_path):
    file, aside = tmp_path / "metrics.jsonl", tmp_path / "aside"
    writer = JsonLines(file, 0)
    writer.write(1, {"loss": 1.0}, {})
    file.rename(aside)
    file.mkdir()  # as a disk that refuses to write
    with pytest.raises(IsADirectoryError):
        writer.write(2, {"loss": 2.0}, {})
    file.rmdir()
    aside.write_text(aside.read_text() + '{"step": 2, "lo')  # half of the row was written
    aside.rename(file)
    writer.write(3, {"loss": 3.0}, {})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_row_costs_the_same_however_long_the_log_is(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(50_000)))
    writer = JsonLines(file, 50_000)
    size = file.stat().st_size
    tracemalloc.start()
    try:
        for step in range(3):
            writer.write(50_001 + step, {"loss": 0.25}, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 10
    assert [row["step"] for row in rows(tmp_path)] == [*range(50_000), 50_001, 50_002, 50_003]


def test_a_log_that_is_moved_away_begins_anew(tmp_path):
    file = tmp_path / "metrics.jsonl"
    writer = JsonLines(file, 0)
    for step in (1, 2):
        writer.write(step, {"loss": 1.0}, {})
    file.rename(tmp_path / "old.jsonl")
    for step in (3, 4):
        writer.write(step, {"loss": 1.0}, {})
    assert [row["step"] for row in rows(tmp_path)] == [3, 4]


def test_tensorboard_begins_a_new_file_after_an_error(tmp_path, monkeypatch):
    from tensorboardX.record_writer import RecordWriter

    def full(self, data, write=RecordWriter.write):
        write(self, data)
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = TensorBoard(tmp_path, 0)
    writer.write(1, {"loss": 1.0}, {})
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", full)
        with pytest.raises(OSError, match="No space"):
            writer.write(2, {"loss": 2.0}, {})
    writer.write(3, {"loss": 3.0}, {})
    writer.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    found = [event.step for event in events(tmp_path).Scalars("loss")]
    assert found[0] == 1
    assert found[-1] == 3


class Failing:
    """A disk that is full for some entries."""

    def __init__(self, *failing):
        self.failing, self.written = failing, []

    def write(self, step, scalars, images):
        if step in self.failing:
            raise OSError(errno.ENOSPC, "write error")
        self.written.append(step)

    def close(self):
        pass


def test_each_failure_is_one_warning_and_other_writers_go_on(caplog):
    full, good = Failing(2, 3, 5), Failing()
    writers = Background({"full": lambda: full, "good": lambda: good})
    for step in range(1, 7):
        writers.write(step, {}, {})
    writers.close()
    assert (full.written, good.written) == ([1, 4, 6], [1, 2, 3, 4, 5, 6])
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == ["full could not be written (No space left on device); training goes on"] * 2


def test_a_writer_that_cannot_be_opened_is_opened_later(caplog):
    good, tries = Failing(), []

    def opened():
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.EACCES, "no")
        return good

    writers = Background({"log": opened})
    for step in range(1, 4):
        writers.write(step, {}, {})
    writers.close()
    assert good.written == [2, 3]
    assert caplog.text.count("Permission denied") == 1


def test_a_disk_that_never_answers_does_not_block(caplog):
    answer = threading.Event()

    class Hanging(Failing):
        def write(self, step, scalars, images):
            answer.wait()
            super().write(step, scalars, images)

    disk = Hanging()
    writers = Background({"disk": lambda: disk})
    for step in range(WAITING + 3):
        writers.write(step, {}, {})
    assert not writers.drain(0.05)
    assert "the disk does not answer" in caplog.text
    answer.set()
    writers.close()
    assert disk.written[: WAITING - 1] == list(range(WAITING - 1))
