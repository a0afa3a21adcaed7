"""Presets in the config of a run: what they change there, and what `--sampler` makes of them."""

import dataclasses
import json

import pytest

from jaxdiff import config as configs
from jaxdiff.config.files import plain
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.runs.workdir import init_workdir, read_config
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.cads import Cads
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.recipe import Preset, Recipe
from jaxdiff.sampling.samplers.heun import Heun
from jaxdiff.sweeps import presets
from tests.sweeps.runs import a_run

RECIPE = Recipe(Heun(), Karras(0.02, 80.0), Cads(ClassifierFree(2.5, interval=Interval(0.3))), 7)


def a_record(recipe=RECIPE, ema=None, **setting):
    block = {name: value for name, value in plain(configs.describe(recipe)).items() if name != "target"}
    return {"setting": {"ema": ema, **setting}, "recipe": configs.to_json(block)}


@pytest.fixture
def run(tmp_path):
    a_run(tmp_path)
    return tmp_path


def load(run, **options):
    return Generator.load(str(run), with_weights=False, **options).recipe


def test_a_preset_is_the_recipe_of_its_setting_with_its_steps_and_guidance(run):
    own = load(run)
    assert presets.apply(a_record(), "best-quality", str(run)) == "bestquality"
    expected = Preset(**{field.name: getattr(RECIPE, field.name) for field in dataclasses.fields(Recipe)})
    assert load(run, sampler="best-quality") == load(run, sampler="Best Quality") == expected
    assert load(run) == own, "the run's own recipe stays"
    changed = load(run, sampler="best-quality", overrides=[("sampling.steps", "3")])
    assert changed == dataclasses.replace(expected, steps=3)


def test_nothing_else_in_the_config_changes(run):
    before = (run / "config.json").read_text()
    for steps in (7, 9):
        presets.apply(a_record(dataclasses.replace(RECIPE, steps=steps)), "fastest", str(run))
    stored = json.loads((run / "config.json").read_text())
    assert stored["recipes"].pop("fastest")["steps"] == 9, "a preset replaces that of an earlier sweep"
    assert json.dumps(stored, indent=1) + "\n" == before


def test_a_recipe_of_another_kind_is_not_replaced(run):
    stored = json.loads((run / "config.json").read_text())
    stored["recipes"] = {"fastest": plain(configs.describe(RECIPE))}
    (run / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="--apply='fastest': expected a name that no recipe of the run has"):
        presets.apply(a_record(), "fastest", str(run))


def test_weights_of_another_length_cannot_be_a_recipe(run):
    with pytest.raises(UserError, match=r"--apply=fastest: .*got EMA 0.1. Fix: make a run of it \(python"):
        presets.apply(a_record(ema=0.1), "fastest", str(run))


def test_a_negative_condition_cannot_be_a_recipe(run):
    with pytest.raises(
        UserError, match=r"--apply='fastest': expected .*got one with label=3. Fix: .*--negative 'label=3'"
    ):
        presets.apply(a_record(negative="label=3"), "fastest", str(run))
    presets.apply(a_record(negative="own"), "fastest", str(run))


def test_a_run_that_continues_keeps_its_presets(run):
    """The config file of a run, with which it continues, knows no presets."""
    config = read_config(str(run))
    presets.apply(a_record(), "fastest", str(run))
    applied = (run / "config.json").read_text()
    (run / "checkpoints" / "1").mkdir(parents=True)
    init_workdir(config, str(run))
    assert (run / "config.json").read_text() == applied
