"""Presets: a setting of a sweep, or a learned grid, as a named recipe of its run."""

import json
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdiff import config as configs
from jaxdiff.config import files
from jaxdiff.config.blocks import TARGET
from jaxdiff.errors import UserError, expect
from jaxdiff.generation.recipes import PRESET
from jaxdiff.runs.workdir import CONFIG_FILE
from jaxdiff.sampling.names import plain, samplers
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sweeps.settings import OWN


def apply(record: Mapping[str, Any], name: str, workdir: str) -> str:
    """`write` the recipe of a record.

    Returns:
      The name, without case and marks.

    Raises:
      UserError: the setting has weights of its own or a negative condition, or the name is that of another recipe.
    """
    check(record, name, workdir)
    return write(json.loads(record["recipe"]), name, workdir)


def write(fields: Mapping[str, Any], name: str, workdir: str) -> str:
    """Write a recipe into the run's config, where ``sample --sampler NAME`` finds it.

    Nothing else in the file is changed; an earlier preset of this name is replaced.

    Args:
      fields: of the recipe, see `block`.

    Returns:
      The name, without case and marks.

    Raises:
      UserError: the name is that of another recipe.
    """
    check_name(name, workdir)
    file = pathlib.Path(workdir).expanduser() / CONFIG_FILE
    stored = json.loads(file.read_text())
    recipe = dict(sorted({TARGET: PRESET, **fields}.items()))  # as in every stored config
    stored["recipes"] = {**(stored.get("recipes") or {}), plain(name): recipe}
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    draft.write_text(json.dumps(stored, indent=1) + "\n")
    draft.replace(file)
    return plain(name)


def block(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe as JSON values; a preset has those of its recipe."""
    return {name: value for name, value in files.plain(configs.describe(recipe)).items() if name != TARGET}


def check(record: Mapping[str, Any], name: str, workdir: str) -> None:
    """Raise `UserError` where `apply` does."""
    check_name(name, workdir)
    negative = record["setting"].get("negative", OWN)
    fix = f"choose another setting, or sample with its scale and --negative '{negative}'"
    expected = "a setting without a negative condition, which no recipe has"
    expect(negative == OWN, "--apply", name, expected, fix, f"one with {negative}")
    length = record["setting"]["ema"]
    if length is not None:
        raise UserError(
            f"--apply={name}: expected a setting with the run's own weights, got EMA {length:g}. Fix: make a "
            f"run of it (python -m jaxdiff.posthoc_ema --workdir {workdir} --std {length:g} --out NEW) and sweep that"
        )


def check_name(name: str, workdir: str, flag: str = "--apply") -> None:
    """Raise `UserError` if the run has another recipe of this name, or it is that of a sampler or of nothing."""
    recipes = json.loads((pathlib.Path(workdir).expanduser() / CONFIG_FILE).read_text()).get("recipes") or {}
    free = recipes.get(plain(name), {TARGET: PRESET}).get(TARGET) == PRESET
    expect(free, flag, name, "a name that no recipe of the run has", "rename that recipe", "a recipe")
    fix = "give another name"
    expect(plain(name) != "", flag, name, "letters or digits", fix)
    expect(plain(name) not in samplers(), flag, name, "a name that no sampler has", fix, "a sampler")


def check_overrides(paths: Sequence[str], flag: str, name: str) -> None:
    """Raise `UserError` if a field of the model is changed: the recipe would give other samples of the stored run."""
    changed = next((path for path in paths if path.startswith("task")), None)
    fix = f"leave out --config.{changed}"
    expect(changed is None, flag, name, "no change of the model", fix, "one")
