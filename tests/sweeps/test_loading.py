"""The generators of settings: their weights, their recipes and their guiding models."""

import jax
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.samplers.heun import Heun
from jaxdiff.sweeps.loading import Request
from jaxdiff.sweeps.settings import Setting
from jaxdiff.training.power_ema import PowerEma
from tests.sweeps.runs import a_run, with_weights
from tests.test_posthoc_ema import STDS, mean_of_time, run_folder, store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with_weights(workdir, a_run(workdir))
    return str(workdir)


@pytest.mark.slow
def test_settings_change_sampler_and_steps_and_share_the_weights(run):
    found = Request(run).candidates([Setting(2.0, 3), Setting(2.0, 5, "heun"), Setting()])
    recipes = [candidate.generator.recipe for candidate in found.made]
    assert [recipe.steps for recipe in recipes] == [3, 5, found.plain.recipe.steps]
    assert isinstance(recipes[1].sampler, Heun)
    assert recipes[2] == found.plain.recipe
    assert [candidate.setting for candidate in found.made] == [
        Setting(2.0, 3, "DpmSolver2M"),
        Setting(2.0, 5, "Heun"),
        Setting(1.5, 4, "DpmSolver2M"),
    ], "each is named by what it is, so that a run's own values are found again when they are given"
    assert all(candidate.generator.params is found.plain.params for candidate in found.made)


@pytest.mark.slow
def test_negative_conditions_are_values_of_the_model_and_nothing_where_guidance_is_off(run):
    settings = [
        Setting(scale, negative=text) for text in ("own", "label=3", "label=4") for scale in (1.0, 2.0)
    ]
    found = Request(run).candidates(settings, with_weights=False).made
    assert [(each.setting.guidance, each.negative) for each in found] == [
        (1.0, None), (2.0, None), (2.0, {"label": 3}), (2.0, {"label": 4}),
    ]  # fmt: skip
    assert found[0].setting.negative == "own"


@pytest.mark.slow
def test_a_rule_is_left_out_only_where_it_refuses_the_scale(run):
    settings = [Setting(scale, rule=rule) for rule in ("own", "cfg_plus_plus") for scale in (0.5, 2.0)]
    found = Request(run).candidates(settings, with_weights=False)
    rules = [(candidate.setting.rule, candidate.setting.guidance) for candidate in found.made]
    assert rules == [("own", 0.5), ("own", 2.0), ("cfg_plus_plus", 0.5)]
    assert found.left_out == [
        "left out: guidance 2 with cfg_plus_plus (--guidance=2: expected a number in [0, 1] for CFG++)"
    ]
    with pytest.raises(UserError, match="--guidance=2: expected a number in"):
        Request(run).candidates(settings[1::2], with_weights=False)


def test_only_guidance_that_uses_it_has_the_guiding_model(run):
    settings = [Setting(2.0), Setting(2.0, rule="autoguidance"), Setting(2.0, rule="cads")]
    found = Request(run, guiding_model=(run, 1)).candidates(settings).made
    assert [candidate.generator.guiding_model is not None for candidate in found] == [False, True, False]
    assert isinstance(found[1].generator.recipe.guidance, Autoguidance)
    with pytest.raises(UserError, match="expected a setting that uses it, got none"):
        Request(run, guiding_model=(run, 1)).candidates(settings[::2], with_weights=False)
    with pytest.raises(UserError, match="guiding_model=None: expected a guiding model"):
        Request(run).candidates(settings, with_weights=False)


@pytest.mark.slow
def test_averages_of_other_lengths_are_those_of_the_snapshots(tmp_path):
    """At the lengths that training tracked they are the stored averages."""
    experiment = run_folder(tmp_path, PowerEma(STDS, snapshot_every=400))
    store(tmp_path, experiment, mean_of_time)
    with_weights(tmp_path, experiment)
    found = Request(str(tmp_path)).candidates([Setting(ema=std) for std in STDS])
    for std, candidate in zip(STDS, found.made, strict=True):
        for leaf in jax.tree.leaves(candidate.generator.params):
            np.testing.assert_allclose(leaf, mean_of_time(1000, std), rtol=1e-4)
    with pytest.raises(UserError, match=r"--ema=0\.5: expected a number in"):
        Request(str(tmp_path)).candidates([Setting(ema=0.5)], with_weights=False)
