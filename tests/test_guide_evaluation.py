"""The guide of evaluation: its Python runs, its commands are followed, and it names every field and every metric."""

import contextlib
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import shlex
import sys
import types

import numpy as np
import pytest
from PIL import Image

from jaxdiff import evaluate, report
from jaxdiff.evaluation import metrics
from jaxdiff.evaluation.metric import Metric
from tests import commands

GUIDE = (commands.ROOT / "docs/evaluation.md").read_text()
SHELL = "\n".join(re.findall(r"^```bash\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
LINES = [shlex.split(line) for line in SHELL.splitlines() if line.strip()]
PAIRED = {"restoration", "spectrum", "patch_frechet", "reconstruction", "retrieval"}
"""Metrics of other guides: pairs of images, and models without samples."""


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE))
def test_each_block_of_python_runs(code, monkeypatch):
    module = types.ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", module)
    with contextlib.chdir(commands.ROOT):
        exec(compile(code, "docs/evaluation.md", "exec"), module.__dict__)


@pytest.mark.parametrize("words", LINES, ids=lambda words: words[-1])
def test_each_command_parses(words):
    assert words[:2] == ["python", "-m"]
    {"jaxdiff.evaluate": evaluate, "jaxdiff.report": report}[words[2]].parser().parse(words[3:])


def test_every_metric_of_samples_is_explained():
    for module in {module.name for module in pkgutil.iter_modules(metrics.__path__)} - PAIRED:
        for name, cls in vars(importlib.import_module(f"{metrics.__name__}.{module}")).items():
            public = inspect.isclass(cls) and dataclasses.is_dataclass(cls) and not name.startswith("_")
            if public and Metric in cls.__mro__:
                assert name in GUIDE, name
    for module, name in re.findall(r"`(\w+):([A-Z]\w+)`", GUIDE):
        assert hasattr(importlib.import_module(f"{metrics.__name__}.{module}"), name), name


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A folder in which all commands of the guide were followed, with small networks; and what they printed."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "photos").mkdir()
    for i in range(5):
        image = np.random.default_rng(i).integers(0, 256, (70, 64, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / "photos" / f"{i}.png")
    for name, steps in (("digits", 3), ("digits_long", 4)):
        flags = ("--config", commands.DIGITS, "--workdir", str(folder / "runs" / name))
        commands.run("train", *flags, *commands.TINY, f"--config.steps={steps}", devices=1)
    printed = []
    for _, _, module, *words in LINES:
        at = {"at": folder, "PYTHONPATH": str(commands.ROOT)}
        printed.append(commands.run(module.removeprefix("jaxdiff."), *words, devices=1, **at)[0])
    return folder, printed


@pytest.mark.slow
def test_the_commands_can_be_followed(followed):
    folder, (_, _, compared, digits, photos, _, *pages) = followed
    elsewhere = json.loads((folder / "runs/digits_seed_1/evaluation.json").read_text())
    assert elsewhere["samples"][0]["conditions"]["seed"] == 1
    assert [page.split(",")[0].rpartition("/")[2] for page in pages] == ["report.html", "digits.html"]
    assert "weights: A 'sha256:" in compared
    assert re.search(r"^frechet +\S+ +\S+ +\S+ +\S+$", compared, re.MULTILINE)
    assert "digits_test.npz: 297 images, 64 numbers each, sha256:" in digits
    assert "photos.npz: 5 images, 768 numbers each, sha256:" in photos
    stored = json.loads((folder / "runs/digits/evaluation.json").read_text())
    (digest,) = re.findall(r"sha256:\w+", digits)
    assert (
        stored["samples"][0]["conditions"]["reference"] == f"{digest}; test"
    )  # of precision and recall: test
    assert stored["samples"][0]["frechet_n"]["reference"] == 297
    assert stored["samples"][0]["conditions"]["seed"] == 0


@pytest.mark.slow
def test_a_report_has_the_fields_of_the_guide(followed):
    stored = json.loads((followed[0] / "runs/digits/evaluation.json").read_text())
    conditions = stored["samples"][0]["conditions"]
    tables = GUIDE.partition("## Fields of evaluation.json")[2]
    cells = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    of_networks = {"profile", "features_hash"}
    assert named - of_networks <= set(stored) | set(conditions)
    assert set(stored) | set(conditions) <= named | {"k", "classifier"}
    assert conditions["nfe"] == 4
    assert conditions["reuse"] == "None"
    assert conditions["weights"].startswith("sha256:")
