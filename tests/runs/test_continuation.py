"""A run continues with what changes neither its learning nor its examples; everything else is refused by name."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from jaxdiff.cli import app
from jaxdiff.config import build
from jaxdiff.config.overrides import override
from jaxdiff.data.arrays import Arrays
from jaxdiff.errors import UserError
from jaxdiff.runs import classes
from jaxdiff.runs.workdir import init_workdir, read_config
from tests.commands import DIGITS

LABEL = "task.denoiser.conditioner.conditions.label.num_classes"


def a_config(folder, *changes):
    source = f"jaxdiff.data.folder:ImageFolder(path='{folder}',size=8,channels=1)"
    base = [("data.source", source), ("evaluation", "None"), ("test_data", "None"), (LABEL, "3"), ("steps", "8"),
            ("optimizer.schedule.warmup_steps", "2")]  # fmt: skip
    return app.load_config(DIGITS, [*base, *changes])


def images(folder, *names, count=2):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 10 * i).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def run(tmp_path):
    """A run on three folders of images that has a checkpoint of step 4; starts it, or continues it."""
    images(tmp_path / "data", "ant", "bee", "cat")

    def begin(*changes, data="data", new_schedule=False, step=None):
        config = a_config(tmp_path / data, *changes)
        folder = init_workdir(config, str(tmp_path / "run"), build(config), new_schedule)
        if step is not None:
            (folder / "checkpoints" / str(step)).mkdir(parents=True)
        return folder

    begin(step=4)
    begin.root = tmp_path
    return begin


def refused(run, message, *changes, **options):
    folder = run.root / "run"
    before = {path.name: path.read_text() for path in folder.glob("*.json")}
    with pytest.raises(UserError, match=message) as error:
        run(*changes, **options)
    assert len(str(error.value).splitlines()) == 1
    assert {path.name: path.read_text() for path in folder.glob("*.json")} == before, "nothing is written"


def test_fewer_steps_than_are_done_leave_the_records_of_the_run(run):
    before = (run.root / "run" / "config.json").read_text()
    run(("steps", "2"))
    assert (run.root / "run" / "config.json").read_text() == before
    run()


@pytest.mark.spread(3)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accumulation", "2"), ("data.threads", "0"), ("data.prefetch", "8"), ("data.cache", "False"), ("keep", "5"),
        ("log_every", "3"), ("checkpoint_every", "3"), ("mesh.data", "1"), ("sample_every", "0"),
        ("task.denoiser.network.remat", "True"), ("sampling.steps", "3"),
    ],
)  # fmt: skip
def test_speed_memory_and_outputs_are_free(run, field, value):
    run((field, value))
    assert str(build(read_config(str(run.root / "run")))) == str(
        build(a_config(run.root / "data", (field, value)))
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", "32"), ("seed", "1"), ("optimizer.learning_rate", "0.5"), ("data.shuffle", "False"),
        ("data.source.split", "train"), ("optimizer.schedule.warmup_steps", "3"), ("ema.decay", "0.5"),
        ("task.stratified", "False"),
    ],
)  # fmt: skip
def test_what_changes_learning_is_refused(run, field, value):
    refused(run, rf"got a run with another config \({field}", (field, value))


def test_data_that_have_moved_are_the_same_data(run):
    (run.root / "data").rename(run.root / "moved")
    run(data="moved")
    assert read_config(str(run.root / "run")).data.source.path == str(run.root / "moved")


def test_other_data_are_refused_in_any_place(run):
    Image.new("L", (8, 8)).save(run.root / "data" / "ant" / "9.png")
    refused(run, r"examples that the run started with, got others \(files: 6 -> 7; classes.ant: 2 -> 3\)")
    images(run.root / "other", "ant", "bee", "cat")
    Image.new("L", (8, 8), 77).save(run.root / "other" / "ant" / "0.png")
    refused(run, "as many, with other names, sizes, captions or pixels", data="other")


def test_a_place_is_compared_with_what_the_run_has_stored(run):
    """A run of an earlier version has stored nothing."""
    (run.root / "run" / "data.json").unlink()
    images(run.root / "other", "ant", "bee", "cat")
    refused(run, r"another config \(data\.source\.path", data="other")
    run()
    assert (run.root / "run" / "data.json").exists()


@pytest.mark.parametrize("steps", ["8", "12"])
def test_a_renamed_class_is_refused_by_its_name(run, steps):
    (run.root / "data" / "ant").rename(run.root / "data" / "zebra")
    message = r"started with \(ant=0, bee=1, cat=2\), got others \(gone: ant; new: zebra\)"
    refused(run, message, ("steps", steps))


def test_the_table_of_the_run_keeps_its_numbers(run):
    (run.root / "run" / "classes.json").write_text(json.dumps({"cat": 0, "ant": 1, "bee": 2}))
    table = classes.read(run())
    assert table == ("cat", "ant", "bee")
    experiment = build(a_config(run.root / "data")).with_classes(table)
    assert experiment.data.all()["label"].tolist() == [1, 1, 2, 2, 0, 0]


def test_a_run_from_before_there_were_tables_keeps_the_order_of_text(run):
    images(run.root / "numbers", "1", "2", "10")
    for name in ("classes.json", "data.json"):
        (run.root / "run" / name).unlink()
    config = json.loads((run.root / "run" / "config.json").read_text())
    config["data"]["source"]["path"] = str(run.root / "numbers")
    (run.root / "run" / "config.json").write_text(json.dumps(config))
    assert classes.read(run(data="numbers")) == ("1", "10", "2")
    assert classes.read(run(data="numbers")) == ("1", "10", "2"), "and stores it"
    new = a_config(run.root / "numbers")
    assert classes.read(init_workdir(new, str(run.root / "new"), build(new))) == ("1", "2", "10")


def test_a_run_that_starts_from_another_takes_its_order(run, caplog):
    (run.root / "run" / "classes.json").write_text(json.dumps({"cat": 0, "ant": 1, "bee": 2}))
    start = ("init_from", f"jaxdiff.training.transfer:InitFrom(workdir='{run.root / 'run'}')")
    config = a_config(run.root / "data", start)
    assert classes.read(init_workdir(config, str(run.root / "a"), build(config))) == ("cat", "ant", "bee")
    config = a_config(images(run.root / "other", "ant", "cow", "cat"), start)
    assert classes.read(init_workdir(config, str(run.root / "b"), build(config))) == ("ant", "cat", "cow")
    assert "labels start as ant from cat, cat from ant, cow from bee" in caplog.text


def test_folders_without_images_are_named(run, caplog):
    (run.root / "data" / "dog").mkdir()
    run()
    assert "no images in dog" in caplog.text


def test_no_table_is_stored_where_labels_mean_nothing(run):
    config = a_config(run.root / "data")
    config.task.denoiser.conditioner.conditions = {}
    folder = init_workdir(config, str(run.root / "unconditional"), build(config))
    assert classes.read(folder) is None


def test_arrays_keep_their_names(tmp_path):
    experiment = build(a_config(tmp_path))
    source = Arrays(image=np.zeros((3, 8, 8, 1), np.uint8), label=np.arange(3), classes=("ant", "bee", "cat"))
    object.__setattr__(experiment.data, "source", source)
    assert classes.read(init_workdir(a_config(tmp_path), str(tmp_path / "run"), experiment)) == (
        "ant",
        "bee",
        "cat",
    )


COSINE = "jaxdiff.training.optimizer:Cosine"


def test_more_steps_after_the_end_need_a_schedule_by_name(run, caplog):
    stored = json.loads((run.root / "run" / "config.json").read_text())
    stored["steps"] = 4
    (run.root / "run" / "config.json").write_text(json.dumps(stored))
    message = (
        r"config.steps=8: expected a schedule for the steps after 4.*leaps from 0 to 0.75 .*at step 4.*"
        + COSINE
    )
    refused(run, message, ("steps", "8"))
    run(("steps", "8"), new_schedule=True)
    assert "leaps from 0 to 0.75" in caplog.text


@pytest.mark.parametrize(
    "schedule", ["jaxdiff.training.optimizer:Constant", f"{COSINE}(warmup_steps=1,final=0.1)"]
)
def test_another_schedule_after_the_end_is_free(run, schedule):
    config = json.loads((run.root / "run" / "config.json").read_text())
    config["steps"] = 4
    (run.root / "run" / "config.json").write_text(json.dumps(config))
    run(("optimizer.schedule", schedule), ("steps", "8"))
    refused(run, "optimizer.schedule", ("steps", "8"))


def test_more_steps_are_free_where_the_rate_does_not_leap(tmp_path, caplog):
    config = a_config(tmp_path, ("optimizer.schedule", "jaxdiff.training.optimizer:Constant"))
    (init_workdir(config, str(tmp_path / "run")) / "checkpoints" / "8").mkdir(parents=True)
    override(config, "steps", "16")
    with caplog.at_level(logging.WARNING):
        init_workdir(config, str(tmp_path / "run"), new_schedule=False)
    assert not caplog.messages


def test_more_steps_before_the_end_are_said(tmp_path, caplog):
    config = a_config(tmp_path, ("optimizer.schedule", f"{COSINE}(warmup_steps=2)"))
    (init_workdir(config, str(tmp_path / "run")) / "checkpoints" / "6").mkdir(parents=True)
    override(config, "steps", "16")
    init_workdir(config, str(tmp_path / "run"), new_schedule=False)
    assert "steps=16 instead of 8: a learning rate that leaps from 0.25 to" in caplog.text


@pytest.mark.parametrize("content", [b"", b'{"steps": 8', b"[]", b"3", b"\xff\xfe", b"[" * 100_000, None])
def test_a_damaged_config_is_one_line_for_every_command(run, content):
    file = run.root / "run" / "config.json"
    file.unlink() if content is None else file.write_bytes(content)
    for read in (run, lambda: read_config(str(run.root / "run"))):
        with pytest.raises(UserError, match=r"--workdir=.*: expected .*config.*Fix: ") as error:
            read()
        assert len(str(error.value).splitlines()) == 1
        assert len(str(error.value)) < 500


TABLES = ["", "[]", '{"a": 0, "b": 2}', '{"a": "0"}', "[" * 100_000, "[0, 1, 2]", '"ant"', "3", "null", "{}",
          '{"ant": false}', '{"ant": 0.0}', '{"ant": null}', '{"ant": [0]}', '["ant", "bee", "cat"]']  # fmt: skip


@pytest.mark.spread(5)
@pytest.mark.parametrize("content", TABLES)
def test_a_damaged_table_is_one_line(run, content):
    (run.root / "run" / "classes.json").write_text(content)
    with pytest.raises(UserError, match=r"classes\.json") as error:
        run()
    assert len(str(error.value).splitlines()) == 1


def test_other_steps_without_a_leap_are_said_where_the_schedule_depends_on_them(tmp_path, caplog):
    def begin(steps, schedule):
        change = ("optimizer.schedule", schedule)
        config = a_config(images_once(tmp_path / "data"), change, ("steps", str(steps)))
        return init_workdir(config, str(tmp_path / schedule.partition("(")[0]), build(config), False)

    def images_once(folder):
        return folder if folder.exists() else images(folder, "ant", "bee", "cat")

    for schedule, said in (
        (f"{COSINE}(warmup_steps=2)", True),
        ("jaxdiff.training.optimizer:Constant", False),
    ):
        folder = begin(1000, schedule)
        (folder / "checkpoints" / "4").mkdir(parents=True)
        caplog.clear()
        begin(1030, schedule)
        assert ("steps=1030 instead of 1000: the learning rates from step 4 on" in caplog.text) == said
        caplog.clear()
        begin(1030, schedule)
        assert caplog.messages == [], "said once"
