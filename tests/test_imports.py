"""Every module imports by itself, and what starts fast stays fast."""

import ast
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import jaxdiff

MODULES = sorted(module.name for module in pkgutil.walk_packages(jaxdiff.__path__, "jaxdiff."))
CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
HEAVY = {"tensorflow", "tensorflow_datasets", "grain", "orbax", "sklearn", "torch", "matplotlib"}


def loaded_by(*modules: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after importing `modules`."""
    program = f"import {', '.join(modules)}; import sys; print(*sys.modules)"
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    return {name.partition(".")[0] for name in printed.split()}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    importlib.import_module(name)


def test_modules_import_in_any_order():
    loaded_by(*reversed(MODULES))


def test_commands_start_without_jax():
    assert not loaded_by("jaxdiff.cli.app", "jaxdiff.config") & {"jax", "jaxlib", "flax", "numpy", *HEAVY}


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    "name",
    [
        "train",
        "sample",
        "evaluate",
        "sweep",
        "plan",
        "convert",
        "posthoc_ema",
        "cache",
        "learn_grid",
        "data.__main__",
    ],
)
def test_help_needs_no_jax(name):
    assert not loaded_by(f"jaxdiff.{name}") & {"jax", "jaxlib", "flax", "numpy", *HEAVY}


def test_classes_of_configs_import_nothing_heavy():
    """A config imports the classes that it names; reading one must not cost seconds."""
    trees = [ast.parse(file.read_text()) for file in CONFIGS.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    named = {str(node.module) for node in nodes} & set(MODULES)
    assert "jaxdiff.data.sources" in named
    assert not loaded_by(*sorted(named)) & HEAVY


def test_the_library_never_needs_tensorflow():
    assert not loaded_by(*MODULES) & {"tensorflow", "torch"}
