"""The documentation is true: its recipes run, and the tests that it names exist."""

import pathlib
import re
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = re.compile(r"^## (?P<title>[^\n]+)\n.*?^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
RECIPES = {
    match["title"]: match["code"] for match in RECIPE.finditer((ROOT / "docs/extending.md").read_text())
}
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", (ROOT / "docs/conventions.md").read_text())))


def test_there_is_a_recipe_for_each_kind_of_part():
    assert list(RECIPES) == ["A schedule", "A sampler", "A condition", "A data set", "A model"]


@pytest.mark.parametrize("title", RECIPES)
def test_recipe_runs(title, monkeypatch):
    module = types.ModuleType("recipe")
    monkeypatch.setitem(sys.modules, "recipe", module)  # dataclasses look their module up
    exec(compile(RECIPES[title], f"docs/extending.md ({title})", "exec"), module.__dict__)


@pytest.mark.parametrize("name", NAMED)
def test_each_convention_names_a_test_that_exists(name):
    file, _, function = name.partition("::")
    assert (ROOT / file).exists()
    assert f"\ndef {function}" in (ROOT / file).read_text()
