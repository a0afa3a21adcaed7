import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.cads import Cads
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.rules import Projected
from jaxdiff.sampling.modifiers.thresholding import DynamicThreshold
from jaxdiff.sampling.protocols import Encoded
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim

FLOW = RectifiedFlow()
WIDTH, BATCH = 64, 4
KEYS = jax.random.split(jax.random.key(0), BATCH)
Y = 2 + 3 * np.random.default_rng(0).normal(size=(BATCH, WIDTH))
X = np.zeros((BATCH, 1, WIDTH, 1))


def conditions():
    given = {"vector": jnp.asarray(Y), "mask": jnp.ones((BATCH, 3), bool)}
    return {"c": Encoded(given, jax.tree.map(jnp.zeros_like, given))}


def shows_the_condition(x, t, conditions, drop):
    """A model whose image is the condition that it sees."""
    encoded = conditions["c"]
    assert encoded.cond["mask"].dtype == bool
    seen = jnp.where(drop["c"][:, None], encoded.uncond["vector"], encoded.cond["vector"])
    return Prediction(seen[:, None, :, None], 0 * x)


def seen(cads, t, keys=KEYS, tree=None):
    guided = cads(shows_the_condition, FLOW, conditions() if tree is None else tree, keys)
    return np.asarray(guided(jnp.asarray(X[: len(keys)]), jnp.asarray(t)).x_0)[:, 0, :, 0]


def test_conditions_are_clean_late_and_pure_noise_early():
    cads = Cads(ClassifierFree(), 0.6, 0.9, noise_scale=0.5, rescale=0.0)
    np.testing.assert_array_equal(seen(cads, 0.3), Y)
    np.testing.assert_array_equal(seen(cads, 0.6), Y)
    noise = seen(cads, 0.9)
    assert abs(np.std(noise) / 0.5 - 1) < 4 / np.sqrt(2 * noise.size)
    assert abs(np.corrcoef(noise.ravel(), Y.ravel())[0, 1]) < 4 / np.sqrt(noise.size)


def test_in_between_the_variances_add_up():
    """``sqrt(gamma) y + s sqrt(1 - gamma) n``: gamma is 1/4 three quarters of the way."""
    residual = seen(Cads(ClassifierFree(), 0.6, 0.8, 0.5, rescale=0.0), 0.75) - 0.5 * Y
    assert abs(np.std(residual) / (0.5 * np.sqrt(0.75)) - 1) < 4 / np.sqrt(2 * residual.size)
    assert abs(np.corrcoef(residual.ravel(), Y.ravel())[0, 1]) < 4 / np.sqrt(residual.size)


@pytest.mark.parametrize("psi", [0.0, 0.4, 1.0])
def test_rescaling_brings_mean_and_spread_of_each_condition_back(psi):
    plain, found = (seen(Cads(ClassifierFree(), 0.6, 0.8, 0.5, rescale=share), 0.79) for share in (0.0, psi))
    for noisy, back, y in zip(plain, found, Y, strict=True):
        restored = (noisy - noisy.mean()) / noisy.std() * y.std() + y.mean()
        np.testing.assert_allclose(back, psi * restored + (1 - psi) * noisy, rtol=1e-6)


def test_the_noise_is_a_function_of_the_images_key_and_the_time():
    cads = Cads(ClassifierFree(), 0.5, 0.9, 0.5)
    here = seen(cads, 0.8)
    np.testing.assert_array_equal(seen(cads, 0.8), here)
    alone = jax.tree.map(lambda value: value[1:2], conditions())
    np.testing.assert_allclose(seen(cads, 0.8, KEYS[1:2], alone), here[1:2], rtol=1e-9)
    noise = [seen(Cads(ClassifierFree(), 0.1, 0.2, 1.0, rescale=0.0), t) for t in (0.8, 0.8000001)]
    independent = [*noise[0], *noise[1]]  # images and times
    correlations = np.corrcoef(independent) - np.eye(2 * BATCH)
    assert np.abs(correlations).max() < 5 / np.sqrt(WIDTH)


def test_parts_of_a_condition_have_independent_noise():
    flat = jnp.zeros((BATCH, WIDTH))

    def model(x, t, conditions, drop):
        return Prediction((conditions["a"].cond - conditions["b"].cond)[:, None, :, None], 0 * x)

    guided = Cads(ClassifierFree(), 0.1, 0.2, 1.0, rescale=0.0)(
        model, FLOW, {name: Encoded(flat, flat) for name in "ab"}, KEYS
    )
    difference = guided(jnp.asarray(X), jnp.asarray(0.5)).x_0
    assert abs(np.std(difference) / np.sqrt(2) - 1) < 4 / np.sqrt(2 * difference.size)
    still = Cads(ClassifierFree(), noise_scale=0.0)(model, FLOW, {n: Encoded(flat, flat) for n in "ab"}, KEYS)
    np.testing.assert_array_equal(still(jnp.asarray(X), jnp.asarray(0.8)).x_0, 0.0)


def test_the_null_stays_clean_and_the_inner_guidance_acts():
    """``null + 3 (noisy - null)`` with a null of 0."""
    arguments = {"tau_1": 0.5, "tau_2": 0.9, "noise_scale": 0.5}
    guided = seen(Cads(ClassifierFree(3.0), **arguments), 0.7)
    np.testing.assert_allclose(guided, 3 * seen(Cads(ClassifierFree(), **arguments), 0.7))
    np.testing.assert_array_equal(seen(Cads(ClassifierFree(0.0), **arguments), 0.7), 0.0)


def test_without_noise_it_is_the_inner_guidance_with_its_state():
    rule = Projected(0.0, 2.0, -0.5)
    plain, cads = (
        guidance(shows_the_condition, FLOW, conditions(), KEYS)
        for guidance in (ClassifierFree(3.0, rule), Cads(ClassifierFree(3.0, rule), 0.5, 0.9))
    )
    x, t = jnp.asarray(X), jnp.asarray(0.4)
    states = plain.init(x), cads.init(x)
    for _ in range(2):
        expected, first = plain.call(x, t, states[0])
        found, second = cads.call(x, t, states[1])
        states = first, second
        np.testing.assert_allclose(found.x_0, expected.x_0, rtol=1e-12)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), second, first)


def test_everything_composes_in_one_compiled_recipe(float32):
    """CADS around projected guidance in an interval, with a dynamic threshold: finite, and independent per image."""
    guidance = Cads(ClassifierFree(4.0, Projected(0.1, 5.0, -0.5), Interval(0.2, 3.0)), 0.4, 0.9, 0.3)
    recipe = Recipe(Ddim(1.0), Uniform(), guidance, 6, modifiers=(DynamicThreshold(0.95, 2.0),))
    tree = jax.tree.map(
        lambda value: value.astype(jnp.float32) if value.dtype != bool else value, conditions()
    )

    @jax.jit
    def make(tree, keys):
        return recipe(shows_the_condition, FLOW, tree, (1, WIDTH, 1), keys)

    together = make(tree, KEYS)
    alone = make(jax.tree.map(lambda value: value[2:3], tree), KEYS[2:3])
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.abs(together).max(axis=(1, 2, 3)), 2.0, rtol=1e-6
    )  # guided beyond the limit


@pytest.mark.parametrize("wrong", [{"tau_2": 0.6}, {"noise_scale": -0.1}, {"rescale": 1.5}])
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Cads(ClassifierFree(), **wrong)
