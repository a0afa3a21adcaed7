"""Classifier-free guidance, and guidance in an interval, against closed forms for Gaussians."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.samplers.heun import Euler, Heun
from tests.sampling.guidance.models import FLOW, KEYS, Only, a_batch, levels, model, oracle


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
