"""A null that was never trained is not sampled: by guidance, by a negative condition, or in place of a value."""

import dataclasses
import logging

import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.vector import ClassLabel
from jaxdiff.errors import UserError
from jaxdiff.generation import checks
from jaxdiff.generation.cascade import Cascade
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.cads import Cads
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.guidance.per_condition import PerCondition
from tests.generation.test_inputs import LEVELS, a_generator

TABLE = {"table": LEVELS[:, None], "null": np.zeros((1, 1))}
UNTRAINED, TRAINED = (ClassLabel(3, 1, drop_rate=rate) for rate in (0.0, 0.1))
CONDITIONS = {"label": UNTRAINED, "style": TRAINED}
GIVEN = {"label": [0, 1], "style": [1, 2]}


def model(scale=1.0, **conditions):
    return a_generator(conditions or CONDITIONS, dict.fromkeys(conditions or CONDITIONS, TABLE), scale=scale)


REFUSED = {
    "scale": lambda: model()(**GIVEN, guidance=2.0),
    "scale 0": lambda: model()(**GIVEN, guidance=0.0),
    "recipe": lambda: model(1.5)(**GIVEN),
    "recipe before training": lambda: model(1.5).check_nulls(),
    "evaluation before training": lambda: model().check_nulls((1.0, 3.0)),
    "by name": lambda: model()(**GIVEN, guidance={"label": 2.0}),
    "chain": lambda: model()(**GIVEN, guidance={"label": 2.0, "style": 1.0}),
    "none for all": lambda: model()(2, label=None, style=0),
    "none for some": lambda: model()(label=[None, 1], style=0),
    "negative of none": lambda: model()(**GIVEN, guidance=2.0, negative={"label": None}),
    "inversion": lambda: model().invert(IMAGES, **GIVEN, guidance=2.0),
    "edit": lambda: model().edit(IMAGES, **GIVEN, guidance=2.0),
    "edit of none": lambda: model().edit(IMAGES, label=0, style=0, before={"label": None, "style": 0}),
    "cascade": lambda: Cascade((model(label=UNTRAINED), LARGE))(label=[0, 1], guidance=2.0),
    "cads": lambda: with_rule(Cads(ClassifierFree(2.0)))(**GIVEN),
}
IMAGES = np.zeros((2, 4, 4, 1), np.uint8)
LARGE = a_generator({"low": ImageCondition(1, factor=2.0, method="nearest")}, {"low": {}}, (8, 8, 1))


def with_rule(rule):
    generator = model()
    return dataclasses.replace(generator, recipe=dataclasses.replace(generator.recipe, guidance=rule))


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_a_learned_null_without_training_is_refused(call):
    with pytest.raises(
        UserError, match=r"expected a trained null of label, got null='learned' with drop_rate=0"
    ):
        call()


def test_whatever_shows_no_such_null_is_sampled():
    generator = model()
    generator(**GIVEN)
    generator(**GIVEN, guidance={"style": 2.0})  # label is never dropped
    generator(**GIVEN, guidance=2.0, negative={"label": 2})
    generator(label=[0, 1], style=None)
    generator.edit(IMAGES, **GIVEN)
    with_rule(PerCondition(("label",), (1.0,))).check_nulls()
    with_rule(Autoguidance(2.0)).check_nulls()  # the weaker model sees the same conditions


def test_weights_that_were_trained_with_drops_elsewhere_say_so():
    generator = model(label=UNTRAINED.clone(drop_rate=0.1))
    generator(label=[0, 1], guidance=2.0)


def test_zeros_without_training_are_a_warning(caplog):
    generator = model(label=ClassLabel(3, 1, null="zero", drop_rate=0.0))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            generator(label=[0, 1], guidance=2.0)
    assert [record.getMessage().startswith("guidance=2.0") for record in caplog.records] == [True]


def test_guidance_that_can_change_nothing_is_a_warning(caplog):
    label = ClassLabel(3, 1, null="none", drop_rate=0.0)
    generator = a_generator({"label": label}, {"label": {"table": LEVELS[:, None]}})
    with caplog.at_level(logging.WARNING):
        generator(label=[0, 1], guidance=2.0, negative={"label": 2})
        assert not caplog.records
        generator(label=[0, 1], guidance=2.0)
    assert "guidance=2.0: expected a condition with a null to guide away from" in caplog.text


def test_numbers_with_a_default_are_not_reported(caplog):
    conditioner = Conditioner(model().denoiser.conditioner.noise, {"size": Continuous(2, 1, default=0.0)})
    checks.check_nulls(conditioner, ["size"], "guidance", 2.0)
    assert not caplog.records


@pytest.mark.parametrize("scale", [np.nan, np.inf, 1e6, -1e6])
def test_scales_that_nobody_means_are_refused(scale):
    for make in (ClassifierFree, Autoguidance, lambda scale: PerCondition(("label",), (scale,))):
        with pytest.raises(UserError, match="expected a guidance scale of at most 1000"):
            make(float(scale))
