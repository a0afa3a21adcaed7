"""One run on a folder of classes: its labels mean the same in test data, on resume, in samples and in evaluation."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdiff import evaluate, sample, train
from jaxdiff.errors import UserError
from jaxdiff.evaluation.protocols import EvaluationInputs, Report
from jaxdiff.generation.generator import Generator
from tests.commands import DIGITS, TINY

LEVELS = {"ant": 20, "bee": 130, "cat": 240, "dog": 60}
CLASSES = "--config.task.denoiser.conditioner.conditions.label.num_classes=3"
ONE_LEVEL = "--config.task.denoiser.network.levels=jaxdiff.models.unet:Level(width=32,blocks=0)"
FEW = ("--config.sampling.steps=2", "--config.steps=4", "--config.checkpoint_every=4", "--config.log_every=2")


def images(folder, *names, size=8, count=12):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(i).integers(-10, 10, (size, size))
            Image.fromarray((LEVELS[name] + noise).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def source(field, folder, size=8):
    block = f"jaxdiff.data.folder:ImageFolder(path='{folder}',size={size},channels=1)"
    return f"--config.{field}.source={block}"


@dataclasses.dataclass(frozen=True)
class LabelsOfLevels:
    """An evaluation that reports the labels of each grey level of the test images."""

    every: int = 0

    def __call__(self, inputs: EvaluationInputs) -> Report:
        found: dict[str, set[int]] = {}
        for batch in inputs.test.batches(8):
            for image, label in zip(batch["image"], batch["label"], strict=True):
                name = min(LEVELS, key=lambda name, image=image: abs(LEVELS[name] - image.mean()))
                found.setdefault(name, set()).add(int(label))
        figure = np.zeros((2, 2, 3), np.uint8)
        return Report({name: sorted(labels) for name, labels in found.items()}, [["", ""]], [], figure)


def command(root, *words, data="train", test="val", run="run"):
    given = source("data", root / data), source("test_data", root / test), "--workdir", str(root / run)
    tiny = [word for word in TINY if ".levels" not in word and ".evaluation" not in word]
    evaluation = "--config.evaluation=tests.test_labels:LabelsOfLevels"
    return ["--config", DIGITS, ONE_LEVEL, *tiny, CLASSES, *FEW, *given, evaluation, *words]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run trained on ants, bees and cats, and evaluated on ants and cats; its folder is ``run``."""
    root = tmp_path_factory.mktemp("labels")
    images(root / "train", "ant", "bee", "cat")
    images(root / "val", "ant", "cat")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdiff.distributed.runtime.start", lambda: None)
        train.main(command(root))
    return root


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr("jaxdiff.distributed.runtime.start", lambda: None)


@pytest.mark.slow
def test_the_run_stores_its_table(root):
    assert json.loads((root / "run" / "classes.json").read_text()) == {"ant": 0, "bee": 1, "cat": 2}


@pytest.mark.slow
def test_test_data_without_a_class_keep_the_numbers(root):
    """In the evaluation after training, and in that of a command."""
    report = root / "run" / "evaluation.json"
    for _ in range(2):
        assert json.loads(report.read_text())["ant"] == [0]
        assert json.loads(report.read_text())["cat"] == [2]
        report.unlink()
        evaluate.main(["--workdir", str(root / "run"), "--packages", "tests"])


def test_the_table_is_shown_by_a_command(root, capsys):
    sample.main(["--workdir", str(root / "run"), "--packages", "tests", "--classes"])
    assert capsys.readouterr().out == "0  ant\n1  bee\n2  cat\n"


@pytest.mark.slow
def test_names_and_numbers_give_the_same_samples(root, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"label": "cat"}\n{"label": 0}\n')
    ways = {
        "names": ("--label", "cat,ant"),
        "numbers": ("--label", "2,0"),
        "conditions": ("--condition", "label=cat", "--condition", "label=ant"),
        "lines": ("--conditions", str(lines)),
    }
    found = {}
    for name, words in ways.items():
        out = tmp_path / f"{name}.npz"
        negative = ("--negative", "label=bee" if name == "names" else "label=1")
        sample.main(
            ["--workdir", str(root / "run"), "--packages", "tests", *negative, *words, "--out", str(out)]
        )
        found[name] = np.load(out)
        np.testing.assert_array_equal(found[name]["label"], [2, 0])
        np.testing.assert_array_equal(found[name]["images"], found["names"]["images"])
    images = Generator.load(str(root / "run"), packages=("tests",))(
        label=["cat", "ant"], negative={"label": "bee"}
    )
    np.testing.assert_array_equal(images, found["names"]["images"])


def test_an_unknown_class_is_refused_with_the_table(root):
    with pytest.raises(UserError, match=r"--label=dog: expected classes.*ant=0, bee=1, cat=2"):
        sample.main(
            [
                "--workdir",
                str(root / "run"),
                "--packages",
                "tests",
                "--label",
                "dog",
                "--out",
                str(root / "x.png"),
            ]
        )
    with pytest.raises(UserError, match=r"--negative label=dog: expected classes"):
        sample.main(
            [
                "--workdir",
                str(root / "run"),
                "--packages",
                "tests",
                "--negative",
                "label=dog",
                "--out",
                str(root / "x.png"),
            ]
        )


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("absent", r"config.test_data: path='.*absent': expected a folder of images, got no such path"),
        ("small", r"config.test_data=.*: expected examples of training's shape, \(8, 8, 1\)"),
        ("unknown", r"config.test_data: classes=dog: .*training data \(ant, bee, cat\), got bee, cat, dog"),
        ("empty", r"config.test_data: path='.*empty': expected .png"),
        ("loose", r"config.test_data: label='folder': expected all images in subfolders"),
    ],
)
def test_test_data_are_looked_at_before_the_start(root, tmp_path, monkeypatch, test, message, evaluated):
    monkeypatch.setattr("jaxdiff.training.loop.run", None)  # training would be a TypeError
    images(tmp_path / "unknown", "bee", "cat", "dog", count=1)
    images(tmp_path / "small", "ant", "cat", count=1)
    images(tmp_path / "loose", "ant", count=1)
    shutil.copy(tmp_path / "loose" / "ant" / "0.png", tmp_path / "loose" / "0.png")
    (tmp_path / "empty").mkdir()
    words = [source("test_data", tmp_path / test, size=16 if test == "small" else 8)]
    words += [] if evaluated else ["--config.evaluation=None"]
    with pytest.raises(UserError, match=message) as error:
        train.main([*command(root, run=tmp_path / "run"), *words])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("steps", ["4", "8"])
def test_a_class_that_moves_between_stop_and_resume_is_refused(root, tmp_path, steps):
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "copy" / "train" / "ant").rename(tmp_path / "copy" / "train" / "zebra")
    with pytest.raises(
        UserError, match=r"started with \(ant=0, bee=1, cat=2\), got others \(gone: ant; new: zebra\)"
    ):
        train.main([*command(tmp_path / "copy"), f"--config.steps={steps}"])


def test_more_steps_of_a_finished_run_need_a_schedule(root):
    with pytest.raises(UserError, match=r"leaps from 0 to .*Fix: name one, --config.optimizer.schedule="):
        train.main([*command(root), "--config.steps=8"])


@pytest.mark.slow
def test_a_run_continues_elsewhere_with_its_numbers(root, tmp_path, capsys):
    """Data and run have moved, work is divided otherwise, and a new schedule is named."""
    shutil.copytree(root, tmp_path / "copy")
    schedule = "--config.optimizer.schedule=jaxdiff.training.optimizer:Constant"
    words = (
        "--config.steps=5",
        schedule,
        "--config.accumulation=2",
        "--config.data.threads=2",
        "--config.sample_every=5",
    )
    train.main([*command(tmp_path / "copy"), *words, "--config.evaluation=None"])
    assert "classes: ant=0, bee=1, cat=2" in capsys.readouterr().out
    assert (tmp_path / "copy" / "run" / "checkpoints" / "5").exists()
    assert list((tmp_path / "copy" / "run" / "samples").iterdir())
