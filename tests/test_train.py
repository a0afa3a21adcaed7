"""Training as a user calls it: any task by the command, and arrays in memory from Python."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxdiff import config as configs
from jaxdiff.cli import app
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.errors import UserError
from jaxdiff.runs.workdir import read_config
from jaxdiff.train import train
from jaxdiff.training.state import create_state
from tests import commands
from tests.commands import DIGITS, TINY

CLASSIFIER = """
from jaxdiff.config import spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.experiment import Experiment
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW
from tests.tasks.classification import Classification


def get_config(keep="1.0"):
    return spec(
        Experiment,
        task=spec(Classification, features=64, classes=10, keep=float(keep)),
        optimizer=spec(AdamW, learning_rate=0.05),
        ema=spec(Ema, decay=0.9),
        data=spec(Pipeline, source=spec(Tfds, name="digits"), cache=True),
        steps=60,
        batch_size=64,
        log_every=20,
        sample_every=0,
    )
"""


def test_other_tasks_than_denoising_are_trained(tmp_path):
    config = tmp_path / "classifier.py"
    config.write_text(CLASSIFIER)
    workdir = tmp_path / "run"
    commands.run("train", "--config", str(config), "--workdir", str(workdir), PYTHONPATH=str(commands.ROOT))
    rows = commands.metrics(workdir)
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert rows[-1]["accuracy"] > 0.9
    assert rows[-1]["loss"] < 0.5 < rows[0]["loss"]
    request = ("--workdir", str(workdir), "--packages", "tests", "--out", str(tmp_path / "x.png"))
    out, err = commands.run("sample", *request, code=2, PYTHONPATH=str(commands.ROOT))
    assert "config.task='Classification': expected a task with samples" in err
    assert out == ""


def test_sampling_fields_are_refused_for_other_tasks():
    scope = {}
    exec(CLASSIFIER, scope)
    experiment = configs.build(scope["get_config"]())
    with pytest.raises(UserError, match="sample_every=10: expected a task with samples, got Classification"):
        dataclasses.replace(experiment, sample_every=10)
    with pytest.raises(UserError, match="classes=9: expected 10 classes"):
        dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, classes=9)).check_data()


def tiny(steps):
    words = [tuple(word.removeprefix("--config.").split("=")) for word in TINY]
    changes = [
        ("steps", str(steps)),
        ("checkpoint_every", "3"),
        ("evaluation", "None"),
        ("test_data", "None"),
    ]
    return app.load_config(DIGITS, [*words, *changes])


DIGIT_IMAGES = (load_digits().images[:200, ..., None] * 15.9).astype(np.uint8)
LABELS = load_digits().target[:200]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The folder and the generator of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "once"
    return folder, train(tiny(6), str(folder), source=Arrays(image=DIGIT_IMAGES, label=LABELS))


@pytest.mark.slow
def test_arrays_in_memory_train_and_continue_exactly(once, tmp_path):
    """A run that stops after three steps and continues equals an uninterrupted one."""
    folder, once = once
    source = Arrays(image=DIGIT_IMAGES, label=LABELS)
    train(tiny(3), str(tmp_path / "twice"), source=source)
    twice = train(
        tiny(6), str(tmp_path / "twice"), source=Arrays(label=LABELS.copy(), image=DIGIT_IMAGES.copy())
    )
    jax.tree.map(np.testing.assert_array_equal, once.params, twice.params)
    images = once(label=[3, 1])
    np.testing.assert_array_equal(images, twice(label=[3, 1]))
    assert images.shape == (2, 8, 8, 1)
    stored = read_config(str(folder)).data.source
    assert (stored.length, tuple(stored.fields)) == (200, ("image", "label"))
    with pytest.raises(UserError, match=r"got a run with another config \(data.source.sha256"):
        train(tiny(6), str(folder), source=Arrays(image=DIGIT_IMAGES[::-1], label=LABELS))
    with pytest.raises(UserError, match="expected a source that can be read, got a record of 200 examples"):
        configs.build(read_config(str(folder))).data.example()


def test_arrays_have_the_order_and_batches_of_other_sources():
    class Listed:
        """The same examples, one by one."""

        image_shape, num_classes = (8, 8, 1), 10

        def open(self):
            return self

        def __len__(self):
            return 200

        def __getitem__(self, index):
            return {"image": DIGIT_IMAGES[index], "label": np.int32(LABELS[index]), "index": np.int32(index)}

    both = (
        Pipeline(source).batches(8, seed=1) for source in (Arrays(image=DIGIT_IMAGES, label=LABELS), Listed())
    )
    for first, second, _ in zip(*both, range(3), strict=False):
        for name in ("image", "label", "index"):
            np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected at least one array"),
        ({"image": DIGIT_IMAGES, "label": LABELS[:3]}, r"expected arrays of one length > 0, got .*200.*3"),
        ({"label": LABELS - 1}, "label=int64.*: expected whole numbers >= 0"),
        ({"label": LABELS / 2}, "label=float64.*: expected whole numbers >= 0"),
        ({"index": LABELS}, "expected other names than index"),
        ({"label": LABELS, "num_classes": 5}, "label=9: expected classes from 0 to 4"),
        ({"image": DIGIT_IMAGES, "num_classes": 5}, "num_classes=5: expected None without a field label"),
    ],
)
def test_invalid_arrays_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Arrays(**fields)


def test_arrays_that_do_not_fit_the_model_raise_before_compilation(tmp_path):
    with pytest.raises(
        UserError, match=r"image_shape=\(8, 8, 1\): expected the shape of the examples, \(4, 4, 1\)"
    ):
        train(tiny(3), str(tmp_path / "a"), source=Arrays(image=DIGIT_IMAGES[:, :4, :4], label=LABELS))
    with pytest.raises(UserError, match=r"image=float32.*: expected uint8, got float32"):
        train(
            tiny(3), str(tmp_path / "b"), source=Arrays(image=DIGIT_IMAGES.astype(np.float32), label=LABELS)
        )
    few = LABELS < 3
    with pytest.raises(UserError, match="num_classes=10: expected the number of classes of the data, 3"):
        train(tiny(3), str(tmp_path / "c"), source=Arrays(image=DIGIT_IMAGES[few], label=LABELS[few]))


@pytest.mark.slow
def test_class_labels_of_any_name_are_checked_while_training(tmp_path):
    """A label out of range would be NaN in the network, and every step would be skipped."""
    config = tiny(3)
    conditions = config.task.denoiser.conditioner.conditions
    config.task.denoiser.conditioner.conditions = {"digit": conditions.label}
    late = np.where(np.arange(200) == 150, 14, LABELS)
    with pytest.raises(UserError, match=r"config.data.digit=14: expected a class from 0 to 9"):
        train(config, str(tmp_path), source=Arrays(image=DIGIT_IMAGES, digit=late.astype(np.int32)))


def test_test_data_are_checked_before_training(tmp_path):
    config = tiny(3)
    config.test_data, config.evaluation = config.data, app.load_config(DIGITS, []).evaluation
    source, floats = Arrays(image=DIGIT_IMAGES, label=LABELS), DIGIT_IMAGES.astype(np.float32) / 255
    with pytest.raises(UserError, match=r"config.test_data.image=float32.*: expected uint8"):
        train(config, str(tmp_path), source=source, test_source=Arrays(image=floats, label=LABELS))
    with pytest.raises(UserError, match="expected examples with the condition label"):
        train(config, str(tmp_path), source=source, test_source=Arrays(image=DIGIT_IMAGES))


@pytest.mark.slow
def test_an_experiment_object_trains_as_its_config_does(once, tmp_path):
    experiment, (_, by_config) = configs.build(tiny(6)), once
    by_object = train(experiment, str(tmp_path / "run"), source=Arrays(image=DIGIT_IMAGES, label=LABELS))
    jax.tree.map(np.testing.assert_array_equal, by_config.params, by_object.params)
    initial = create_state(experiment.task, experiment.optimizer.make(6), by_config.mesh, 0)
    changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), by_config.params, initial.params)
    assert any(jax.tree.leaves(changed))
