"""What every guidance can do: be written as a config block, and be given a scale."""

import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.cads import Cads
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.guidance.rules import CfgPlusPlus, Projected, Rescale


@pytest.mark.parametrize(
    "guidance",
    [
        ClassifierFree(2.0, Rescale(0.5), Interval(0.2, 3.0)),
        ClassifierFree(0.6, CfgPlusPlus()),
        PerCondition(("image", "text"), (1.5, 7.5), interval=Interval(0.2)),
        Autoguidance(2.0, Projected(0.5, 2.5, -0.5)),
        Cads(ClassifierFree(2.0), noise_scale=0.2),
    ],
    ids=lambda guidance: type(guidance).__name__,
)
def test_configs_build_the_same_guidance(guidance):
    block = describe(guidance)
    assert build(from_json(to_json(block)), ("jaxdiff",)) == guidance
    assert hash(guidance) == hash(build(block))


def test_a_scale_can_be_given_to_any_guidance():
    assert ClassifierFree(2.0, Rescale()).with_scale(3.0) == ClassifierFree(3.0, Rescale())
    assert Autoguidance(2.0).with_scale(1.5) == Autoguidance(1.5)
    assert Cads(ClassifierFree(2.0)).with_scale(3.0) == Cads(ClassifierFree(3.0))
    assert PerCondition(("a", "b"), (1.0, 2.0)).with_scale(3.0) == PerCondition(("a", "b"), (3.0, 3.0))
