"""DeepCache: which calls are whole, and what the others see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.loop import sample
from jaxdiff.sampling.protocols import TimePath
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.reuse import DeepCache
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.heun import Heun

FLOW = RectifiedFlow()
CONDITIONS = {"label": jnp.array([10.0, 20.0])}
KEYS = jax.random.split(jax.random.key(0), 2)
STEPS = 7
TIMES = np.asarray(Uniform()(FLOW, STEPS))


@dataclasses.dataclass(frozen=True)
class Dated:
    """Predicts its condition (0 where dropped) plus the time of the last whole call."""

    def __call__(self, x, t, conditions, drop):
        return self.keeping(x, t, conditions, drop, 1)[0]

    def keeping(self, x, t, conditions, drop, blocks):
        features = jnp.where(drop["label"], 0.0, conditions["label"]) + t
        return self.reusing(x, t, conditions, drop, blocks, features), features

    def reusing(self, x, t, conditions, drop, blocks, features):
        x_0 = jnp.broadcast_to(features[:, None, None, None], x.shape)
        return Prediction(x_0, jnp.zeros_like(x))


def predicted(guidance, reuse, sampler=None, guiding_model=None):
    """The clean data that each call predicts, for both examples, [calls, 2]."""
    seen = []
    recipe = Recipe(sampler or Ddim(), Uniform(), guidance, steps=STEPS, reuse=reuse)
    recipe(
        Dated(), FLOW, CONDITIONS, (1, 1, 1), KEYS, guiding_model,
        observe=lambda _, x_0: jax.debug.callback(lambda x_0: seen.append(x_0[:, 0, 0, 0]), x_0, ordered=True),
    )  # fmt: skip
    jax.effects_barrier()
    return np.array(seen)


def whole_calls(interval, times=TIMES):
    """The times of the last whole calls."""
    return times[np.arange(len(times)) // interval * interval]


@pytest.mark.parametrize("interval", [1, 2, 3, 100])
def test_every_interval_th_call_is_whole(interval):
    found = predicted(ClassifierFree(), DeepCache(interval))
    np.testing.assert_allclose(found, whole_calls(interval)[:, None] + [10.0, 20.0], rtol=1e-6)


def test_calls_are_counted_and_not_steps():
    found = predicted(ClassifierFree(), DeepCache(2), Heun())
    # A step of Heun's method calls at both of its ends, so that its first call is whole; so is the jump to the data.
    np.testing.assert_allclose(found, np.repeat(TIMES, 2)[:-1, None] + [10.0, 20.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("guidance", "factor"),
    [(ClassifierFree(3.0), 3.0), (PerCondition(("label",), (3.0,)), 3.0), (ClassifierFree(0.0), 0.0)],
    ids=["classifier-free", "per condition", "unconditional"],
)
def test_each_branch_of_guidance_has_features_of_its_own(guidance, factor):
    found = predicted(guidance, DeepCache(3))
    np.testing.assert_allclose(found, whole_calls(3)[:, None] + factor * np.array([10.0, 20.0]), rtol=1e-6)


def test_a_guiding_model_is_always_whole():
    def guiding(x, t, conditions, drop):
        return Prediction(jnp.full_like(x, t), jnp.zeros_like(x))

    found = predicted(Autoguidance(2.0), DeepCache(3), guiding_model=guiding)
    expected = 2 * (whole_calls(3)[:, None] + [10.0, 20.0]) - TIMES[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_interval_of_guidance_begins_and_ends_with_a_whole_call():
    level = TIMES / (1 - TIMES + 1e-12)  # the noise level sigma / alpha of the flow
    interval = Interval(float(level[5]) * 1.01, float(level[1]) * 0.99)  # calls 2, 3 and 4
    found = predicted(ClassifierFree(3.0, interval=interval), DeepCache(3))
    last_whole = TIMES[[0, 0, 2, 2, 2, 5, 5]]
    factor = np.array([1, 1, 3, 3, 3, 1, 1.0])
    np.testing.assert_allclose(found, last_whole[:, None] + factor[:, None] * [10.0, 20.0], rtol=1e-6)


def test_after_a_return_to_noise_a_call_is_whole():
    times = TimePath(jnp.array([0.9, 0.7, 0.8, 0.6]), jnp.array([0.7, 0.5, 0.6, 0.4]))
    seen = []
    guided = Recipe(Ddim(), Uniform(), ClassifierFree(), steps=4, reuse=DeepCache(100)).denoiser(
        Dated(), FLOW, CONDITIONS, KEYS
    )
    sample(
        Ddim(), guided, FLOW, times, jnp.ones((2, 1, 1, 1)), KEYS,
        observe=lambda _, x_0: jax.debug.callback(lambda x_0: seen.append(x_0[0, 0, 0, 0]), x_0, ordered=True),
    )  # fmt: skip
    jax.effects_barrier()
    np.testing.assert_allclose(np.array(seen) - 10.0, [0.9, 0.9, 0.8, 0.8, 0.8], rtol=1e-6)


def test_the_number_of_whole_calls():
    assert [DeepCache(3).whole_calls(calls) for calls in (1, 3, 4, 6, 7)] == [1, 1, 2, 2, 3]


def test_a_denoiser_without_features_and_numbers_below_1_are_refused():
    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(), steps=2, reuse=DeepCache(2))
    with pytest.raises(
        UserError, match=r"sampling\.reuse=DeepCache\(interval=2, blocks=1\): expected a denoiser"
    ):
        recipe(lambda x, t, conditions, drop: Prediction(x, x), FLOW, CONDITIONS, (1, 1, 1), KEYS)
    for options in ({"interval": 0}, {"blocks": 0}):
        with pytest.raises(UserError, match="expected"):
            DeepCache(**options)
