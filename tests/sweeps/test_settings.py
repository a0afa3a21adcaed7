"""Settings from the command line, and the guidance that they mean."""

import pytest

from jaxdiff.errors import UserError
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.cads import Cads
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.guidance.rules import CfgPlusPlus, Rescale
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sweeps.guidance import recipe_of
from jaxdiff.sweeps.settings import Axes, Setting, unique

FLAGS = ("guidance", "steps", "sampler", "interval", "rule", "ema")


def parsed(**texts):
    return Axes.parse(dict.fromkeys(FLAGS) | texts)


def guidance_of(own=ClassifierFree(2.0), **setting):  # noqa: B008
    return recipe_of(Recipe(Ddim(), Uniform(), own, 4), Setting(**setting)).guidance


def test_all_combinations_once():
    axes = parsed(guidance="1,1.5", steps="4,8,16", sampler="ddim,Ddim(eta=0.5, x=1)", interval="none,0.30:3")
    assert axes.sampler == ("ddim", "Ddim(eta=0.5, x=1)"), "commas in brackets separate no values"
    settings = axes.settings()
    assert len(settings) == len(set(settings)) == 2 * 3 * 2 * 2
    assert {setting.interval for setting in settings} == {"none", "0.3:3"}
    assert parsed().settings() == [Setting()]


def test_negative_conditions_are_a_list_since_texts_contain_commas():
    settings = parsed(guidance="2,3", negative=["none", "text=dark, blurry"]).settings()
    assert [setting.negative for setting in settings] == [
        "own",
        "own",
        "text=dark, blurry",
        "text=dark, blurry",
    ]
    assert [setting.measure for setting in settings][1:3] == ["", "negative text=dark, blurry"]
    with pytest.raises(UserError, match=r"--negative=.*expected different values"):
        parsed(negative=["label=3", "label=3"])


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("guidance", "1,x", "--guidance='1,x'|--guidance='x': expected finite numbers"),
        ("guidance", "nan", "--guidance='nan': expected finite numbers"),
        ("guidance", "1,,2", "--guidance='1,,2': expected values separated by commas"),
        ("guidance", "2,2.0", "--guidance='2,2.0': expected different values, got 2 twice"),
        ("steps", "0", "--steps='0': expected whole numbers > 0"),
        ("steps", "4.5", "--steps='4.5': expected whole numbers > 0"),
        ("interval", "3", "--interval='3': expected noise levels LOW:HIGH"),
        ("interval", "3:1", "--interval='3:1': expected 0 <= LOW < HIGH"),
        ("interval", "-1:1", "--interval='-1:1': expected 0 <= LOW < HIGH"),
        ("ema", "1.5", r"--ema='1.5': expected fractions of training in \(0, 1\)"),
    ],
)
def test_wrong_values_are_named(flag, text, message):
    with pytest.raises(UserError, match=message):
        parsed(**{flag: text})


def test_one_step_is_a_number_of_steps():
    assert Axes.parse({"steps": "1,2"}).steps == (1, 2)


def test_a_setting_changes_scale_interval_and_rule():
    assert guidance_of() == ClassifierFree(2.0)
    assert guidance_of(guidance=3.0, interval="0.3:3") == ClassifierFree(3.0, interval=Interval(0.3, 3.0))
    limited = ClassifierFree(2.0, interval=Interval(1.0, 2.0))
    assert guidance_of(limited, interval="none") == ClassifierFree(2.0)
    assert guidance_of(limited) == limited
    assert guidance_of(rule="rescale(phi=0.5)") == ClassifierFree(2.0, Rescale(0.5))
    assert guidance_of(rule="cfg_plus_plus", guidance=0.6) == ClassifierFree(0.6, CfgPlusPlus())
    bounded = ClassifierFree(0.6, CfgPlusPlus())
    assert guidance_of(bounded, rule="extrapolate", guidance=3.0) == ClassifierFree(3.0)
    assert guidance_of(rule="Autoguidance", guidance=3.0) == Autoguidance(3.0)
    noisy = guidance_of(rule="cads(noise_scale=0.2)", interval="0.3:3")
    assert noisy == Cads(ClassifierFree(2.0, interval=Interval(0.3, 3.0)), noise_scale=0.2)


def test_settings_that_mean_the_same_are_sampled_once():
    """Where guidance is off, an interval changes nothing."""
    settings = parsed(guidance="1,2", interval="none,0.3:3,0:inf").settings()
    base = Recipe(Ddim(), Uniform(), ClassifierFree(2.0), 4)
    kept = unique([(each, recipe_of(base, each)) for each in settings], lambda setting, recipe: recipe)
    assert [setting.guidance for setting, _ in kept] == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("own", "setting", "message"),
    [
        (ClassifierFree(2.0), {"rule": "apg"}, "--rule='apg': expected one of own"),
        (ClassifierFree(2.0), {"rule": "rescale(phi=2)"}, r"--rule=rescale\(phi=2\): .*phi=2.0: expected a number in"),
        (ClassifierFree(2.0), {"rule": "rescale(0.5)"}, r"--rule=rescale\(0.5\): expected a name with arguments"),
        (ClassifierFree(2.0), {"rule": "rescale(a=1)"}, "expected a field of Rescale, got 'a'"),
        (ClassifierFree(2.0), {"rule": "cfg_plus_plus", "guidance": 2.0}, "--guidance=2: expected a number in"),
        (ClassifierFree(2.0), {"guidance": 1e6}, "--guidance=1e.06: expected a guidance scale of at most"),
        (PerCondition(("a",), (2.0,)), {"rule": "rescale"}, "--rule='rescale': expected a run whose guidance has"),
        (PerCondition(("a",), (2.0,)), {"rule": "autoguidance"}, "--rule='autoguidance': expected a run with Class"),
    ],
)  # fmt: skip
def test_guidance_that_a_run_cannot_have_is_refused(own, setting, message):
    with pytest.raises(UserError, match=message):
        guidance_of(own, **setting)


def test_names_of_settings():
    setting = Setting(2.5, 8, "ddim", "0.3:3", "cads", 0.1)
    assert str(setting) == "guidance 2.5 with cads and the interval 0.3 to 3, ddim, 8 steps, EMA 0.1"
    assert str(Setting(2.5, 8, "ddim", "none")) == "guidance 2.5, ddim, 8 steps"
