"""Compiled programs: the scale and the interval of guidance are arguments, so that other values compile nothing."""

import dataclasses
import math

import numpy as np
import pytest

from jaxdiff.generation import compiled
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.cads import Cads
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.guidance.rules import CfgPlusPlus, Projected, Rescale
from tests.generation.test_generator import MEANS, NULL, a_generator, constant

NOISY = {"process": VarianceExploding(0.01, 10.0), "grid": Karras(0.02, 10.0)}


def programs(generator, scales):
    """The number of programs that images at these scales need, and the images."""
    before = compiled.PROGRAMS.count
    images = [generator(label=[0, 3], guidance=scale) for scale in scales]
    return compiled.PROGRAMS.count - before, images


def test_k_guidance_scales_are_one_program_with_the_images_of_each():
    scales = (1.25, 2.0, 3.0, -0.5)
    count, images = programs(a_generator(steps=3), scales)
    assert count == 1
    for scale, found in zip(scales, images, strict=True):
        np.testing.assert_array_equal(found, constant(NULL + scale * (MEANS[[0, 3]] - NULL)))


def test_scales_that_call_one_branch_are_programs_of_their_own():
    assert programs(a_generator(steps=2), (1.0, 0.0, 2.0, 3.0))[0] == 3


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("guidance", "scales"),
    [
        (ClassifierFree(2.0, Rescale(0.5)), (1.5, 2.5)),
        (ClassifierFree(2.0, Projected(norm=0.1)), (1.5, 2.5)),
        (ClassifierFree(0.5, CfgPlusPlus()), (0.25, 0.75)),
        (Cads(ClassifierFree(2.0)), (1.5, 2.5)),
    ],
    ids=["Rescale", "Projected", "CfgPlusPlus", "Cads"],
)
def test_every_rule_has_one_program_for_all_scales_and_follows_them(guidance, scales):
    count, (low, high) = programs(a_generator(guidance, slope=0.1, steps=3), scales)
    assert count == 1
    assert (low != high).any()


def test_an_interval_moves_without_compilation_and_means_what_it_says():
    """With all noise levels inside, guidance acts as without an interval; with none, as without guidance."""
    intervals = [Interval(), Interval(0.0, 20.0), Interval(100.0, math.inf), Interval(0.5, 2.0)]
    generator = a_generator(ClassifierFree(3.0), **NOISY)
    before, images = compiled.PROGRAMS.count, []
    for interval in intervals:
        rule = ClassifierFree(3.0, interval=interval)
        recipe = dataclasses.replace(generator.recipe, guidance=rule)
        images.append(dataclasses.replace(generator, recipe=recipe)(label=[0, 3]))
    assert compiled.PROGRAMS.count == before + 1
    everywhere, nowhere = (generator(label=[0, 3], guidance=scale) for scale in (3.0, 1.0))
    for found, expected in zip(images[:3], (everywhere, everywhere, nowhere), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_numbers_of_every_guidance_come_back():
    interval = Interval(0.5, 2.0)
    for guidance in (
        ClassifierFree(2.0, interval=interval),
        Autoguidance(2.0),
        PerCondition(("label",), (2.0,), interval=interval),
        Cads(ClassifierFree(2.0)),
        ClassifierFree(1.0),
    ):
        empty = guidance.with_numbers(dict.fromkeys(guidance.numbers))
        assert empty.with_numbers(guidance.numbers) == guidance
        assert hash(empty) is not None
        assert (empty == guidance) == (not guidance.numbers)
