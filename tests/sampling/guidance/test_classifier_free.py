import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.cads import Cads
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.guidance.rules import CfgPlusPlus, Projected, Rescale
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.samplers.heun import Euler, Heun
from tests.oracles import Counting, Gaussian

FLOW = RectifiedFlow()
T = 0.6
KEYS = jax.random.split(jax.random.key(0), 3)


def a_batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1)))
    return x, {"mean": jnp.asarray([-1.0, 0.5, 2.0])}, jnp.asarray(T)


def oracle(mean, std, process=FLOW):
    return Gaussian(mean, std).denoiser(process)


def model(x, t, fields, drop):
    """Conditional N(condition, 0.4^2), unconditional N(0, 1)."""
    mean, std = jnp.where(drop["mean"], 0.0, fields["mean"]), jnp.where(drop["mean"], 1.0, 0.4)
    return oracle(mean[:, None, None, None], std[:, None, None, None])(x, t)


class Only:
    """A model that throws unless it is called with this `drop` for all of one plain batch."""

    def __init__(self, drop: bool):
        self.drop, self.calls = drop, 0

    def __call__(self, x, t, fields, drop):
        self.calls += 1
        if x.shape[0] != 3 or drop["mean"].tolist() != [self.drop] * 3:
            raise AssertionError("the other branch was called")
        return model(x, t, fields, drop)


@pytest.mark.parametrize(("scale", "drop"), [(1.0, False), (0.0, True)])
def test_scales_1_and_0_call_one_branch_and_change_no_bit(scale, drop):
    x, fields, t = a_batch()
    only = Only(drop)
    found = ClassifierFree(scale)(only, FLOW, fields, KEYS)(x, t)
    expected = model(x, t, fields, {"mean": jnp.full(3, drop)})
    assert only.calls == 1
    np.testing.assert_array_equal(found.x_0, expected.x_0)
    np.testing.assert_array_equal(found.noise, expected.noise)


@pytest.mark.parametrize("scale", [-0.5, 0.3, 3.0])
def test_the_guided_prediction_is_the_papers_in_one_call(scale):
    x, fields, t = a_batch()
    batches = []

    def counted(x, t, fields, drop):
        batches.append(x.shape[0])
        return model(x, t, fields, drop)

    found = ClassifierFree(scale)(counted, FLOW, fields, KEYS)(x, t)
    # (1 + w) conditional - w unconditional, from the posterior means of the two Gaussians.
    w, images, mean = scale - 1, np.asarray(x), np.asarray(fields["mean"])[:, None, None, None]
    gain, gain_null = (0.4 * v / (0.4**2 * v + 0.6**2) for v in (0.4**2, 1.0))
    image = mean + gain * (images - 0.4 * mean)
    np.testing.assert_allclose(found.x_0, (1 + w) * image - w * gain_null * images, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(0.4 * found.x_0 + 0.6 * found.noise, x, rtol=1e-9, atol=1e-9)
    assert batches == [6]


def test_guidance_of_gaussians_has_the_closed_form_of_its_ode():
    """Slopes multiply: the unconditional one to the power 1 - scale. It is not the tilted density's."""
    process, grid, scale = VarianceExploding(), Karras(0.05, 10.0), 3.0
    variance, variance_null = 0.3**2, 1.2**2

    def centred(x, t, fields, drop):
        std = jnp.sqrt(jnp.where(drop["x"], variance_null, variance))[:, None, None, None]
        return oracle(jnp.zeros(()), std, process)(x, t)

    x, keys = (
        jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 1, 2))),
        jax.random.split(jax.random.key(0), 2),
    )
    denoise = ClassifierFree(scale)(centred, process, {"x": jnp.zeros(2)}, KEYS[:2])
    found = integrate(Heun(), denoise, process, grid(process, 400), x, keys)
    slope = ((variance + 0.05**2) / (variance + 100)) ** (scale / 2)
    slope *= ((variance_null + 0.05**2) / (variance_null + 100)) ** ((1 - scale) / 2)
    np.testing.assert_allclose(found / x, slope, rtol=2e-3)


def levels(*values):
    """Times of these noise levels sigma / alpha."""
    return [FLOW.time(-2 * jnp.log(jnp.asarray(value))) for value in values]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_limited_interval_guides_inside_and_is_conditional_outside(scale, jit):
    x, fields, _ = a_batch()
    limited = ClassifierFree(scale, interval=Interval(0.3, 2.0))(model, FLOW, fields, KEYS)
    always = ClassifierFree(scale)(model, FLOW, fields, KEYS)
    never = ClassifierFree(1.0)(model, FLOW, fields, KEYS)
    limited = jax.jit(limited) if jit else limited
    same = [never, never, always, always, never]
    for t, expected in zip(levels(0.1, 0.2999, 0.3001, 1.9999, 2.0001), same, strict=True):
        found, expected = limited(x, t), expected(x, t)
        np.testing.assert_allclose(found.x_0, expected.x_0, rtol=1e-12)
        np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-12)


def test_an_interval_includes_its_upper_end_only():
    """Equation 5 of Kynkäänniemi et al. 2024. Without bounds, the interval includes pure noise."""
    exact = RectifiedFlow()
    half, one = exact.time(jnp.asarray(-2 * np.log(0.5))), exact.time(jnp.asarray(0.0))
    assert bool(Interval(0.25, 1.0).contains(exact, one))
    assert not bool(Interval(1.0, 2.0).contains(exact, one))
    assert bool(Interval(0.25, 1.0).contains(exact, half))
    assert bool(Interval().contains(exact, jnp.asarray(1.0)))
    assert not bool(Interval(0.0, 1e9).contains(exact, jnp.asarray(1.0)))


def test_outside_the_interval_there_is_one_plain_call():
    x, fields, _ = a_batch()
    only = Only(drop=False)
    with jax.disable_jit():
        ClassifierFree(3.0, interval=Interval(0.3, 2.0))(only, FLOW, fields, KEYS)(x, jnp.asarray(0.9))
    assert only.calls == 1


def test_guidance_in_an_interval_has_the_closed_form_of_its_pieces():
    """Slopes multiply from piece to piece: guided between sigma = 4 and 0.5, conditional above and below."""
    process, scale = VarianceExploding(), 3.0
    variance, variance_null = 0.3**2, 1.2**2
    marks = [10.0, 4.0, 0.5, 0.05]  # each a level of the grid, so that no step has two kinds of ends

    def centred(x, t, fields, drop):
        std = jnp.sqrt(jnp.where(drop["x"], variance_null, variance))[:, None, None, None]
        return oracle(jnp.zeros(()), std, process)(x, t)

    pieces = [np.geomspace(a, b, 151) for a, b in itertools.pairwise(marks)]
    sigmas = np.concatenate([pieces[0], pieces[1][1:], pieces[2][1:]])
    interval = Interval(0.5 * 1.0001, 4.0 * 1.0001)
    denoise = ClassifierFree(scale, interval=interval)(centred, process, {"x": jnp.zeros(1)}, KEYS[:1])
    x = jnp.ones((1, 1, 1, 1))
    found = integrate(Euler(), denoise, process, process.time(-2 * jnp.log(jnp.asarray(sigmas))), x, KEYS[:1])

    def slope(variance, high, low):
        return ((variance + low**2) / (variance + high**2)) ** 0.5

    guided = slope(variance, 4.0, 0.5) ** scale * slope(variance_null, 4.0, 0.5) ** (1 - scale)
    expected = slope(variance, 10.0, 4.0) * guided * slope(variance, 0.5, 0.05)
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_a_learned_variance_is_not_extrapolated():
    x, fields, t = a_batch()

    def denoise(x, t, fields, drop):
        found = model(x, t, fields, drop)
        return Prediction(
            found.x_0, found.noise, jnp.where(drop["mean"], 0.0, 1.0)[:, None, None, None] + 0 * x
        )

    np.testing.assert_array_equal(
        ClassifierFree(5.0)(denoise, FLOW, fields, KEYS)(x, t).variance_fraction, np.ones(x.shape)
    )


def test_a_condition_may_be_any_tree():
    x, fields, t = a_batch()

    def denoise(x, t, conditions, drop):
        absent = conditions["mean"][1]["absent"]
        return model(x, t, {"mean": conditions["mean"][0]}, {"mean": drop["mean"] | absent})

    tree = {"mean": (fields["mean"], {"absent": jnp.array([True, False, False])})}
    found = ClassifierFree(3.0)(denoise, FLOW, tree, KEYS)(x, t)
    plain = ClassifierFree(3.0)(model, FLOW, fields, KEYS)(x, t)
    null = ClassifierFree(0.0)(model, FLOW, fields, KEYS)(x, t)
    np.testing.assert_allclose(found.x_0[0], null.x_0[0], rtol=1e-12)
    np.testing.assert_allclose(found.x_0[1:], plain.x_0[1:], rtol=1e-12)


@pytest.mark.parametrize("ends", [(0.7, 0.2), (0.5, 0.5), (-1.0, 0.5)])
def test_an_empty_interval_is_refused(ends):
    with pytest.raises(UserError, match="sigma_max"):
        Interval(*ends)


def test_unsuitable_inputs_of_guidance_raise_before_any_call():
    _, fields, _ = a_batch()
    with pytest.raises(UserError, match=r"guiding_model=.*expected no second model"):
        ClassifierFree(1.0)(model, FLOW, fields, KEYS, model)
    with pytest.raises(UserError, match=r"scale=2.0: expected a model with conditions"):
        ClassifierFree(2.0)(model, FLOW, {}, KEYS)


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


def wide(x, t, fields, drop):
    """A bad version of `model`: the same means, inflated variance."""
    return oracle(jnp.where(drop["mean"], 0.0, fields["mean"])[:, None, None, None], jnp.asarray(0.8))(x, t)


def test_autoguidance_extrapolates_from_the_guiding_model():
    x, fields, t = a_batch()
    none = {"mean": jnp.zeros(3, bool)}
    main, bad = model(x, t, fields, none), wide(x, t, fields, none)
    counted = Counting(model), Counting(wide)
    found = Autoguidance(2.5)(counted[0], FLOW, fields, KEYS, counted[1])(x, t)
    np.testing.assert_allclose(found.x_0, main.x_0 + 1.5 * (main.x_0 - bad.x_0), rtol=1e-9)
    np.testing.assert_allclose(found.noise, main.noise + 1.5 * (main.noise - bad.noise), rtol=1e-9)
    assert [model.calls for model in counted] == [1, 1]


def throws(*arguments):
    raise AssertionError("this model was not to be called")


def test_autoguidance_calls_the_guiding_model_in_its_interval_only():
    x, fields, t = a_batch()
    plain = model(x, t, fields, {"mean": jnp.zeros(3, bool)})
    with jax.disable_jit():
        for guidance in (Autoguidance(1.0), Autoguidance(3.0, interval=Interval(0.0, 0.1))):
            found = guidance(model, FLOW, fields, KEYS, throws)(x, t)
            np.testing.assert_array_equal(found.x_0, plain.x_0)
    found = Autoguidance(1.0)(model, FLOW, fields, KEYS)(x, t)
    np.testing.assert_array_equal(found.x_0, plain.x_0)
    with pytest.raises(UserError, match=r"guiding_model=None: expected a guiding model"):
        Autoguidance(2.0)(model, FLOW, fields, KEYS)


def test_autoguidance_of_gaussians_has_the_closed_form_of_its_ode():
    process, grid, scale = VarianceExploding(), Karras(0.05, 10.0), 2.0

    def centred(std):
        return lambda x, t, fields, drop: oracle(jnp.zeros(()), jnp.asarray(std), process)(x, t)

    x = jnp.ones((1, 1, 1, 1))
    denoise = Autoguidance(scale)(centred(0.5), process, {}, KEYS[:1], centred(0.9))
    found = integrate(Heun(), denoise, process, grid(process, 400), x, KEYS[:1])
    slope = ((0.5**2 + 0.05**2) / (0.5**2 + 100)) ** (scale / 2)
    slope *= ((0.9**2 + 0.05**2) / (0.9**2 + 100)) ** ((1 - scale) / 2)
    np.testing.assert_allclose(found, slope, rtol=2e-3)


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
