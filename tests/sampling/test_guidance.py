import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.grids import Karras
from jaxdiff.sampling.guidance import ClassifierFree
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.loop import integrate

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
    found = ClassifierFree(scale)(only, fields, KEYS)(x, t)
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

    found = ClassifierFree(scale)(counted, fields, KEYS)(x, t)
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
    denoise = ClassifierFree(scale)(centred, {"x": jnp.zeros(2)}, KEYS[:2])
    found = integrate(Heun(), denoise, process, grid(process, 400), x, keys)
    slope = ((variance + 0.05**2) / (variance + 100)) ** (scale / 2)
    slope *= ((variance_null + 0.05**2) / (variance_null + 100)) ** ((1 - scale) / 2)
    np.testing.assert_allclose(found / x, slope, rtol=2e-3)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_limited_interval_guides_inside_and_is_conditional_outside(scale, jit):
    x, fields, _ = a_batch()
    limited = ClassifierFree(scale, t_min=0.2, t_max=0.7)(model, fields, KEYS)
    always = ClassifierFree(scale)(model, fields, KEYS)
    never = ClassifierFree(1.0)(model, fields, KEYS)
    limited = jax.jit(limited) if jit else limited
    for t, same in [(0.1, never), (0.2, always), (0.5, always), (0.7, always), (0.8, never)]:
        found, expected = limited(x, jnp.asarray(t)), same(x, jnp.asarray(t))
        np.testing.assert_allclose(found.x_0, expected.x_0, rtol=1e-12)
        np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-12)


def test_outside_the_interval_there_is_one_plain_call():
    x, fields, _ = a_batch()
    only = Only(drop=False)
    with jax.disable_jit():
        ClassifierFree(3.0, t_min=0.2, t_max=0.7)(only, fields, KEYS)(x, jnp.asarray(0.9))
    assert only.calls == 1


def test_a_learned_variance_is_not_extrapolated():
    x, fields, t = a_batch()

    def denoise(x, t, fields, drop):
        found = model(x, t, fields, drop)
        return Prediction(
            found.x_0, found.noise, jnp.where(drop["mean"], 0.0, 1.0)[:, None, None, None] + 0 * x
        )

    np.testing.assert_array_equal(
        ClassifierFree(5.0)(denoise, fields, KEYS)(x, t).variance_fraction, np.ones(x.shape)
    )


def test_a_condition_may_be_any_tree():
    x, fields, t = a_batch()

    def denoise(x, t, conditions, drop):
        absent = conditions["mean"][1]["absent"]
        return model(x, t, {"mean": conditions["mean"][0]}, {"mean": drop["mean"] | absent})

    tree = {"mean": (fields["mean"], {"absent": jnp.array([True, False, False])})}
    found = ClassifierFree(3.0)(denoise, tree, KEYS)(x, t)
    plain = ClassifierFree(3.0)(model, fields, KEYS)(x, t)
    null = ClassifierFree(0.0)(model, fields, KEYS)(x, t)
    np.testing.assert_allclose(found.x_0[0], null.x_0[0], rtol=1e-12)
    np.testing.assert_allclose(found.x_0[1:], plain.x_0[1:], rtol=1e-12)


def test_an_empty_interval_is_refused():
    with pytest.raises(UserError, match="t_max"):
        ClassifierFree(2.0, 0.7, 0.2)
