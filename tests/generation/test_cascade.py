"""A cascade is its stages in sequence, with models whose images are the sum of their conditions."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.vector import ClassLabel
from jaxdiff.errors import UserError
from jaxdiff.generation.cascade import Cascade, consistency, stage_seed
from jaxdiff.generation.steps import OnStep
from tests.generation.test_inputs import LEVELS, WEIGHTS, a_generator, constant, noisy

LABEL = ClassLabel(3, 1, null="zero")
LOW = ImageCondition(1, factor=2.0, method="nearest")


def base(scale=1.0):
    return a_generator({"label": LABEL}, {"label": WEIGHTS["label"]}, scale=scale)


def larger(scale=1.0, side=8):
    params = {"label": {"table": 0.5 * WEIGHTS["label"]["table"]}, "low": {}}
    return a_generator({"label": LABEL, "low": LOW}, params, (side, side, 1), scale)


def last(scale=1.0):
    return a_generator({"low": LOW}, {"low": {}}, (16, 16, 1), scale)


def test_each_stage_receives_the_previous_images_and_its_conditions():
    stages = base(), larger(), last()
    generated = Cascade(stages).run(label=[0, 2, 1])
    np.testing.assert_array_equal(generated[0], constant(LEVELS[[0, 2, 1]]))
    again = stages[1](label=[0, 2, 1], low=generated[0], seed=stage_seed(0, 1))
    np.testing.assert_array_equal(generated[1], again)
    np.testing.assert_allclose(generated[1].astype(int), constant(1.5 * LEVELS[[0, 2, 1]], (8, 8, 1)), atol=1)
    np.testing.assert_array_equal(generated[2], generated[1].repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_array_equal(Cascade(stages)(label=[0, 2, 1]), generated[2])


@pytest.mark.slow
def test_each_stage_keeps_its_own_guidance_by_default():
    """Guidance doubles the class; the handed-over image has no null, and is shown in both branches."""
    own = Cascade((base(2.0), larger(1.0)))
    np.testing.assert_allclose(own(label=[1]).astype(int), constant([2.5 * LEVELS[1]], (8, 8, 1)), atol=1)
    every = own(label=[1], guidance=2.0)
    np.testing.assert_allclose(every.astype(int), constant([3 * LEVELS[1]], (8, 8, 1)), atol=1)
    named = own(label=[1], guidance={"label": 0.5})
    np.testing.assert_allclose(named.astype(int), constant([0.75 * LEVELS[1]], (8, 8, 1)), atol=1)


def test_scales_go_to_the_stages_that_have_the_condition():
    found = Cascade((base(), last()))(label=[1], guidance={"label": 2.0})
    np.testing.assert_array_equal(found, constant([2 * LEVELS[1]], (8, 8, 1)))


def test_levels_go_to_the_condition_that_they_name():
    small = a_generator({"label": LABEL}, {"label": WEIGHTS["label"]})
    both = Cascade((small, noisy(level=0.3, max_level=0.5)))
    np.testing.assert_array_equal(both(label=[1, 0], levels={"low": 0.0}), small(label=[1, 0]))
    assert np.any(both(label=[1, 0]) != small(label=[1, 0]))
    with pytest.raises(UserError, match=r"low.level=.*from 0 to 0.5"):
        both(label=[1], levels={"low": 0.9})


def test_steps_of_all_stages_are_counted_together():
    """Stage 1 makes its three images in two batches."""
    stages, calls = (base(), dataclasses.replace(larger(), batch_size=2), last()), []
    cascade = Cascade(stages)
    watched = cascade(
        label=[0, 2, 1], on_step=OnStep(lambda *step: calls.append((*step[:2], step[2].shape[:2])))
    )
    np.testing.assert_array_equal(watched, cascade(label=[0, 2, 1]))
    steps = stages[0].recipe.steps
    assert [step for step, *_ in calls] == list(range(1, 4 * steps + 1))
    assert {of for _, of, _ in calls} == {4 * steps}
    shapes = [shape for *_, shape in calls[steps - 1 :: steps]]
    assert shapes == [(3, 4), (2, 8), (1, 8), (3, 16)]


def test_stages_draw_independent_noise():
    seeds = [stage_seed(7, stage) for stage in range(4)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 4
    assert len({stage_seed(seed, 1) for seed in range(100)}) == 100


def test_consistency_is_the_error_of_the_reduced_images():
    small = np.random.default_rng(0).integers(50, 200, (2, 4, 4, 3), np.uint8)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    large[:, ::2] += 10  # means of each pixel's four rise by 5
    large[:, 1::2, 1::2] += 2
    large[:, 1::2, ::2] -= 2
    np.testing.assert_allclose(consistency([small, large, large]), [5.0, 0.0], atol=1e-6)
    wide = dataclasses.replace(last(), image_shape=(8, 8, 1))
    generated = Cascade((base(), wide)).run(label=[0])
    assert consistency(generated) == [0.0]


def test_the_field_is_found_or_named():
    extra = {"label": LABEL, "low": LOW, "edges": ImageCondition(1)}
    two = a_generator(extra, {"label": WEIGHTS["label"], "low": {}, "edges": {}}, (8, 8, 1))
    with pytest.raises(
        UserError, match="cascade_field=None: expected one of the image conditions of stage 1: edges, low"
    ):
        Cascade((base(), two))
    assert Cascade((base(), two), "low").field_of(1) == "low"
    assert Cascade((base(), two), "edges").field_of(1) == "edges"
    assert Cascade((base(), larger(), last()), "edges").field_of(2) == "low"  # the only one that it has
    with pytest.raises(
        UserError, match="cascade_field='label': expected one of the image conditions of stage 1"
    ):
        Cascade((base(), two), "label")


def test_invalid_cascades_raise():
    cascade = Cascade((base(), larger()))
    coloured = a_generator({"low": ImageCondition(3, factor=2.0)}, {"low": {}}, (8, 8, 1))
    cases = {
        "condition='size': expected a condition of some stage.* Fix: there are: label, low": lambda: cascade(
            label=[1], size=3
        ),
        "levels='lov': expected a condition of some stage": lambda: cascade(label=[1], levels={"lov": 0.1}),
        "guidance='text': expected a condition of some stage": lambda: cascade(
            label=[1], guidance={"text": 2.0}
        ),
        "low: expected no value, since the stage before generates it": lambda: cascade(
            label=[1], low=np.zeros((4, 4, 1))
        ),
        "label=: expected a value for this condition of the model, got none": lambda: cascade(2),
        "stages=1: expected two models or more": lambda: Cascade((base(),)),
        "the image conditions of stage 1: none": lambda: Cascade((larger(), base())),
        "stages=1: expected 1 channels in low, as in the images before, got 3": lambda: Cascade(
            (base(), coloured)
        ),
    }
    for message, do in cases.items():
        with pytest.raises(UserError, match=message):
            do()
