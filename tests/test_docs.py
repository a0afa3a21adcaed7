"""The documentation: its recipes run, and the tests and parts that it names exist."""

import ast
import importlib.util
import inspect
import json
import pathlib
import pkgutil
import re
import sys
import types

import numpy as np
import pytest

import jaxdiff
from jaxdiff import sample, train
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from tests import commands

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = re.compile(r"^## (?P<title>[^\n]+)\n.*?^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
RECIPES = {
    match["title"]: match["code"] for match in RECIPE.finditer((ROOT / "docs/extending.md").read_text())
}
NAMED = sorted(
    {
        name
        for page in ("conventions", "reliability")
        for name in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", (ROOT / f"docs/{page}.md").read_text())
    }
)


def test_there_is_a_recipe_for_each_kind_of_part():
    assert list(RECIPES) == [
        "A schedule", "A sampler", "A condition", "A data set", "A model",
        "Attention of a level", "A codec", "A frozen network", "A metric", "A task",
    ]  # fmt: skip
    headings = re.findall(r"^## (.+)$", (ROOT / "docs/extending.md").read_text(), re.MULTILINE)
    assert headings == list(RECIPES), "every section has a recipe"


@pytest.mark.spread(1)
@pytest.mark.parametrize("title", RECIPES)
def test_recipe_runs(title, monkeypatch):
    module = types.ModuleType("recipe")
    monkeypatch.setitem(sys.modules, "recipe", module)  # dataclasses look their module up
    exec(compile(RECIPES[title], f"docs/extending.md ({title})", "exec"), module.__dict__)


@pytest.mark.parametrize("title", RECIPES)
def test_recipe_ends_with_a_truth_about_a_part_of_its_own(title):
    """Without its classes' bodies, or without its checks, a recipe would prove nothing."""
    tree = ast.parse(RECIPES[title])
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes
    assert isinstance(tree.body[-1], ast.Assert | ast.For)
    assert all(ast.get_docstring(node) or "Examples" in node.name for node in classes)


CLASSES = {
    name
    for module in pkgutil.walk_packages(jaxdiff.__path__, "jaxdiff.")
    for name, cls in vars(importlib.import_module(module.name)).items()
    if inspect.isclass(cls) and cls.__module__ == module.name
}


_, *SECTIONS = re.split(r"^## (.+)$", (ROOT / "docs/parts.md").read_text(), flags=re.MULTILINE)
PARTS = dict(zip(SECTIONS[::2], SECTIONS[1::2], strict=True))
"""Text by heading."""


@pytest.mark.parametrize(("heading", "text"), PARTS.items(), ids=PARTS)
def test_each_part_that_is_listed_exists(heading, text):
    packages = [*re.findall(r"`(jaxdiff[\w.]*)`", heading), "jaxdiff"]
    named = re.findall(r"([a-z_][\w.]*):([A-Z]\w+)", text)
    for module, name in named:
        modules = [module] if module.startswith("jaxdiff.") else [f"{each}.{module}" for each in packages]
        found = [each for each in modules if importlib.util.find_spec(each.rpartition(".")[0])]
        assert any(
            importlib.util.find_spec(each) and hasattr(importlib.import_module(each), name) for each in found
        ), f"{module}:{name}"
    for name in re.findall(r"`([A-Z][a-z]\w*)[`(]", text):
        assert name in CLASSES, name


@pytest.mark.parametrize("document", ["docs/architecture.md", "README.md"])
def test_each_package_is_in_the_map_and_each_path_of_the_map_exists(document):
    text = (ROOT / document).read_text()
    rows = "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    paths = re.findall(r"`((?:jaxdiff/)?[\w/]+(?:/|\.py))`", rows)
    found = {path.removeprefix("jaxdiff/") for path in paths}
    packages = {f"{path.parent.name}/" for path in (ROOT / "jaxdiff").glob("*/__init__.py")}
    assert packages <= found
    for path in found:
        assert (ROOT / "jaxdiff" / path).exists() or (ROOT / path).exists(), path


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def test_each_file_that_the_architecture_names_exists():
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)\b", ARCHITECTURE)) - {"tests/tasks/classification.py"}
    assert len(named) > 20
    for path in named:
        assert (ROOT / "jaxdiff" / path).exists(), path


@pytest.mark.parametrize("name", NAMED)
def test_each_test_that_the_documents_name_exists(name):
    file, _, function = name.partition("::")
    assert (ROOT / file).exists()
    assert f"\ndef {function}" in (ROOT / file).read_text()


DATA = """
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Lamps:
    \"\"\"Grey images, which are bright if they have the first of three attributes.\"\"\"

    image_shape = (8, 8, 1)
    num_classes = None
    name = "lamps"

    def open(self):
        return self

    def __len__(self):
        return 16

    def __getitem__(self, i):
        has = np.array([i % 2, i // 2 % 2, i // 4 % 2], bool)
        image = np.full(self.image_shape, 230 if has[0] else 25, np.uint8)
        return {"image": image, "index": np.int32(i), "attributes": has}
"""

CONFIG = f"""
from lamps.attributes import Attributes
from lamps.data import Lamps

from jaxdiff import config as configs
from jaxdiff.config import spec
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.unet import Level, UNet


def get_config():
    config = configs.load({commands.DIGITS!r})
    config.task.denoiser.conditioner.conditions = {{"attributes": spec(Attributes, count=3, width=32)}}
    config.data.source = spec(Lamps)
    level = spec(Level, width=16, blocks=0)
    middle = spec(ResidualMiddle, attention=None)
    config.task.denoiser.network = spec(UNet, levels=(level,), out_channels=1, middle=middle)
    config.task.denoiser.conditioner.noise.width = 32
    return config
"""

BRIEF = {
    "test_data": "None", "evaluation": "None", "steps": "60", "batch_size": "16", "log_every": "60",
    "sample_every": "0", "checkpoint_every": "60", "optimizer.learning_rate": "0.01",
    "optimizer.schedule.warmup_steps": "2", "ema.decay": "0.5", "sampling.steps": "4",
}  # fmt: skip


@pytest.fixture
def lamps(tmp_path, monkeypatch):
    """A user's package: the condition of the recipe, a data set with this condition, and a config."""
    package = tmp_path / "lamps"
    package.mkdir()
    (package / "__init__.py").touch()
    part, example, _ = RECIPES["A condition"].partition("\nconditioner = Conditioner(")
    assert example
    (package / "attributes.py").write_text(part)
    (package / "data.py").write_text(DATA)
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runtime, "start", lambda: None)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "lamps"]:
        del sys.modules[name]


@pytest.mark.slow
def test_a_condition_in_one_file_and_a_line_of_a_config_is_trained_and_sampled(lamps):
    run, out = str(lamps / "run"), lamps / "out.npz"
    changes = [f"--config.{name}={text}" for name, text in BRIEF.items()]
    flags = ("--config", str(lamps / "config.py"), "--workdir", run, *changes)
    commands.run("train", *flags, devices=1, PYTHONPATH=str(lamps))

    def draw(*words, packages="lamps"):
        flags = ["--packages", packages] if packages else []
        sample.main(["--workdir", run, "--out", str(out), "--overwrite", *flags, *words])
        return dict(np.load(out))

    lit, dark = "attributes=[true, false, true]", "attributes=[false, false, true]"
    given = ("--condition", lit, "--condition", dark)
    found = draw("--n", "6", "--guidance", "1", *given)
    assert found["attributes"].tolist() == [[True, False, True], [False, False, True]] * 3
    levels = found["images"].mean(axis=(1, 2, 3))
    assert levels[::2].min() > levels[1::2].max() + 60, (
        "images are bright where the first attribute is present"
    )
    (lamps / "many.jsonl").write_text("\n".join(
        json.dumps({"attributes": value}) for value in ([True, False, True], None)
    ))  # fmt: skip
    read = draw("--conditions", str(lamps / "many.jsonl"), "--guidance", "1")["images"]
    np.testing.assert_array_equal(read[0], found["images"][0])
    none = draw("--condition", "attributes=none", "--guidance", "1", "--n", "2")["images"]
    np.testing.assert_array_equal(read[1], none[1])
    for words, message in {
        (): r"--condition attributes=: expected a value .*Fix: give attributes; the model has: attributes",
        (
            "--condition",
            "attribute=1",
        ): r"'attribute': expected a condition of the model, .* choose from attributes",
        (
            "--condition",
            "attributes=[1, 0, 1]",
        ): r"attributes=int64\[1, 3\]: expected bools \[n, 3\], got int64",
        ("--condition", "attributes=[true]"): r"attributes=bool\[1, 1\]: expected bools \[n, 3\]",
        ("--label", "3"): r"--label='3': expected a model with a label, got attributes",
    }.items():
        with pytest.raises(UserError, match=message):
            draw(*words)
    with pytest.raises(UserError, match="lamps"):
        draw(*given, packages="")
    generator = Generator.load(run, packages=["lamps"])
    for conditions, message in {
        (): r"attributes=: expected a value .*Fix: give attributes",
        (("attribute", 1),): r"attribute=1: expected a condition of the model, .* choose from attributes",
        (("attributes", (True,)),): r"attributes=bool\[2, 1\]: expected bools \[n, 3\]",
    }.items():
        with pytest.raises(UserError, match=message):
            generator(2, **dict(conditions))
    digits = "--config.data.source=jaxdiff.data.sources:Tfds(name='digits')"
    other = ["--config", str(lamps / "config.py"), "--workdir", str(lamps / "other"), *changes, digits]
    with pytest.raises(
        UserError, match="expected examples with the condition attributes, got the fields image, index, label"
    ):
        train.main(other)
