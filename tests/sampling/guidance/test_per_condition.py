"""A scale for each condition, against the papers' formulas and classifier-free guidance."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from tests.sampling.guidance.models import FLOW, KEYS, Only, a_batch, levels, model, oracle


def terms(scales, chained, x, t, fields):
    """Brooks et al. 2023, equation 3, or Liu et al. 2022, equation 11, for conditions "a" and "b"."""
    shown = [
        two_means(x, t, fields, {name: jnp.full(3, name not in seen) for name in "ab"}).x_0
        for seen in ("", "a", "b", "ab")
    ]
    none, a, b, both = (np.asarray(image) for image in shown)
    return none + scales[0] * (a - none) + scales[1] * ((both - a) if chained else (b - none))


def two_means(x, t, fields, drop):
    """The mean of the images is a^2 + 3 b + a b, which is not additive."""
    a, b = (jnp.where(drop[name], 0.0, fields[name]) for name in "ab")
    return oracle((a**2 + 3 * b + a * b)[:, None, None, None], jnp.asarray(0.5))(x, t)


@pytest.mark.spread(5)
@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("scales", [(1.5, 7.5), (1.0, 4.0), (2.0, 0.0), (1.0, 1.0), (0.0, 0.0), (3.0, 3.0)])
def test_each_condition_has_its_scale_and_cancelled_branches_cost_nothing(scales, chained):
    x, _, t = a_batch()
    fields, batches = {"a": jnp.asarray([1.0, -0.5, 2.0]), "b": jnp.asarray([0.3, 1.0, -1.0])}, []

    def counted(x, t, fields, drop):
        batches.append(x.shape[0])
        return two_means(x, t, fields, drop)

    found = PerCondition(("a", "b"), scales, chained)(counted, FLOW, fields, KEYS)(x, t)
    np.testing.assert_allclose(found.x_0, terms(scales, chained, x, t, fields), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(0.4 * found.x_0 + 0.6 * found.noise, x, rtol=1e-9, atol=1e-9)
    s_1, s_2 = scales
    factors = (1 - s_1, s_1 - s_2, s_2) if chained else (1 - s_1 - s_2, s_1, s_2)
    assert batches == [3 * sum(factor != 0 for factor in factors)]


def test_one_condition_is_the_same_in_both_forms():
    x, fields, t = a_batch()
    expected = ClassifierFree(3.0)(model, FLOW, fields, KEYS)(x, t)
    for chained in (True, False):
        found = PerCondition(("mean",), (3.0,), chained)(model, FLOW, fields, KEYS)(x, t)
        np.testing.assert_allclose(found.x_0, expected.x_0, rtol=1e-12)
    plain = PerCondition(("mean",), (5.0,)).with_scale(1.0)(Only(drop=False), FLOW, fields, KEYS)(x, t)
    np.testing.assert_array_equal(plain.x_0, model(x, t, fields, {"mean": jnp.zeros(3, bool)}).x_0)


TWO = {"a": jnp.asarray([1.0, -0.5, 2.0]), "b": jnp.asarray([0.3, 1.0, -1.0])}


def shown_alone(x, t, **drop):
    return two_means(x, t, TWO, {name: jnp.full(3, dropped) for name, dropped in drop.items()})


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("scale", [-0.5, 0.3, 4.0])
def test_a_chain_with_equal_scales_is_classifier_free_guidance(names, scale):
    x, _, t = a_batch()
    expected = ClassifierFree(scale)(two_means, FLOW, TWO, KEYS)(x, t)
    one = PerCondition(names, (scale, scale))(two_means, FLOW, TWO, KEYS)(x, t)
    other = PerCondition(names, (9.0, 1.0), chained=True).with_scale(scale)(two_means, FLOW, TWO, KEYS)(x, t)
    for found in (one, other):
        np.testing.assert_allclose(found.x_0, expected.x_0, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chained", [True, False])
def test_scales_of_0_and_chains_of_1_change_no_bit(chained):
    x, _, t = a_batch()
    cases = [((0.0, 0.0), {"a": True, "b": True}), ((1.0, 0.0), {"a": False, "b": True})]
    if chained:
        cases += [((1.0, 1.0), {"a": False, "b": False})]
    else:
        cases += [((0.0, 1.0), {"a": True, "b": False})]
    for scales, drop in cases:
        found = PerCondition(("a", "b"), scales, chained)(two_means, FLOW, TWO, KEYS)(x, t)
        expected = shown_alone(x, t, **drop)
        np.testing.assert_array_equal(found.x_0, expected.x_0)
        np.testing.assert_array_equal(found.noise, expected.noise)


@pytest.mark.parametrize("chained", [True, False])
def test_a_scale_of_0_is_guidance_without_that_condition(chained):
    x, _, t = a_batch()
    found = PerCondition(("a", "b"), (2.5, 0.0), chained)(two_means, FLOW, TWO, KEYS)(x, t)
    none, a = shown_alone(x, t, a=True, b=True), shown_alone(x, t, a=False, b=True)
    np.testing.assert_allclose(found.x_0, none.x_0 + 2.5 * (a.x_0 - none.x_0), rtol=1e-9)


def test_per_condition_guidance_acts_in_its_interval_only():
    x, _, _ = a_batch()
    limited = PerCondition(("a", "b"), (2.0, 5.0), interval=Interval(0.3, 2.0))(two_means, FLOW, TWO, KEYS)
    always = PerCondition(("a", "b"), (2.0, 5.0))(two_means, FLOW, TWO, KEYS)
    for t, inside in zip(levels(0.2999, 0.3001, 1.9999, 2.0001), (False, True, True, False), strict=True):
        expected = always(x, t) if inside else shown_alone(x, t, a=False, b=False)
        np.testing.assert_allclose(limited(x, t).x_0, expected.x_0, rtol=1e-9)


def test_a_chain_is_ordered_and_other_conditions_are_always_shown():
    x, _, t = a_batch()
    fields = {"a": jnp.asarray([1.0, -0.5, 2.0]), "b": jnp.asarray([0.3, 1.0, -1.0])}
    one, other = (
        PerCondition(names, (2.0, 5.0))(two_means, FLOW, fields, KEYS)(x, t).x_0
        for names in (("a", "b"), ("b", "a"))
    )
    assert np.abs(one - other).max() > 0.1
    found = PerCondition(("a",), (2.0,))(two_means, FLOW, fields, KEYS)(x, t)
    both, b = (
        two_means(x, t, fields, {"a": jnp.full(3, drop), "b": jnp.zeros(3, bool)}).x_0
        for drop in (False, True)
    )
    np.testing.assert_allclose(found.x_0, b + 2 * (both - b), rtol=1e-9)


def test_scales_that_fit_no_condition_are_refused():
    for wrong in ({"conditions": ("a", "a"), "scales": (1.0, 2.0)}, {"conditions": (), "scales": ()}):
        with pytest.raises(UserError, match="conditions"):
            PerCondition(**wrong)
    with pytest.raises(UserError, match="expected 2 scales"):
        PerCondition(("a", "b"), (1.0,))
    _, fields, _ = a_batch()
    with pytest.raises(UserError, match=r"'text': expected conditions of the model.*Fix: name one of mean"):
        PerCondition(("text",), (2.0,))(model, FLOW, fields, KEYS)
    with pytest.raises(UserError, match="guiding_model"):
        PerCondition(("mean",), (2.0,))(model, FLOW, fields, KEYS, model)
