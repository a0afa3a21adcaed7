"""The loop carries what samplers and denoisers remember, and raises images to where a step begins."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.guidance.rules import Projected
from jaxdiff.sampling.loop import (
    SamplerState,
    StatefulDenoiser,
    TimePath,
    integrate,
    modify,
    noise_like,
    sample,
)
from jaxdiff.sampling.recipe import PRIOR, Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.sampling.samplers.heun import Heun
from tests.oracles import Gaussian

FLOW = RectifiedFlow()
KEYS = jax.random.split(jax.random.key(0), 2)
SHAPE = (2, 1, 1, 1)


def counting(weight=1.0):
    """A denoiser that predicts how often it has been called."""

    def call(history, x, t):
        history = history + weight
        return Prediction(history + 0 * x, 0 * x), history

    return StatefulDenoiser(call, lambda x: jnp.zeros((), x.dtype))


@pytest.mark.parametrize(("sampler", "calls"), [(Ddim(), 4), (Heun(), 7), (DpmSolver2M(), 4)], ids=str)
def test_a_denoiser_remembers_through_all_calls_of_all_steps(sampler, calls):
    times = jnp.asarray([1.0, 0.7, 0.5, 0.2])
    found = sample(sampler, counting(), FLOW, times, jnp.zeros(SHAPE), KEYS)
    np.testing.assert_array_equal(found, calls)


def test_a_modifier_of_a_denoiser_that_remembers_remembers():
    def twice(denoise):
        return lambda x, t: jax.tree.map(jnp.add, denoise(x, t), denoise(x, t))

    modified = modify(counting(), twice)
    times = jnp.asarray([0.7, 0.5])
    np.testing.assert_array_equal(sample(Ddim(), modified, FLOW, times, jnp.zeros(SHAPE), KEYS), 3 + 4)
    plain = modify(lambda x, t: Prediction(x, x), twice)
    np.testing.assert_array_equal(plain(jnp.ones(SHAPE), jnp.asarray(0.5)).x_0, 2.0)


@dataclasses.dataclass(frozen=True)
class Inside:
    """A sampler that calls the denoiser within a loop, branch or gradient of its own."""

    kind: str

    def calls(self, steps):
        return steps

    def init(self, x):
        return SamplerState(x)

    def step(self, denoise, process, state, t, t_next, keys):
        def call(x):
            return denoise(x, t).x_0

        if self.kind == "while":
            return SamplerState(jax.lax.fori_loop(0, 2, lambda i, x: call(x), state.x))
        if self.kind == "cond":
            return SamplerState(jax.lax.cond(t > 0.5, call, lambda x: x, state.x))
        return SamplerState(jax.grad(lambda x: jnp.sum(call(x)))(state.x))


@pytest.mark.parametrize("kind", ["while", "cond", "grad"])
def test_a_memory_that_would_be_lost_is_refused_before_compiling(kind):
    times, x = jnp.asarray([0.7, 0.6, 0.5]), jnp.zeros(SHAPE)
    with pytest.raises(UserError, match=r"sampling.guidance=: it remembers"):
        sample(Inside(kind), counting(), FLOW, times, x, KEYS)
    gaussian = Gaussian(jnp.asarray(0.0), jnp.asarray(1.0)).denoiser(FLOW)
    assert np.all(np.isfinite(sample(Inside(kind), gaussian, FLOW, times, x, KEYS)))


def test_guidance_with_momentum_meets_such_a_sampler_readably():
    def model(x, t, conditions, drop):
        return Prediction(0 * x, x)

    for momentum, fits in ((-0.5, False), (0.0, True)):
        recipe = Recipe(Inside("while"), Uniform(), ClassifierFree(2.0, Projected(momentum=momentum)), 3)
        if fits:
            recipe(model, FLOW, {"c": jnp.zeros(2)}, SHAPE[1:], KEYS)
            continue
        with pytest.raises(UserError, match="without a history"):
            recipe(model, FLOW, {"c": jnp.zeros(2)}, SHAPE[1:], KEYS)


def test_a_path_that_rises_diffuses_the_images_and_forgets():
    """A sampler that only remembers: after a rise it starts anew, and images have the variance of their level."""

    @dataclasses.dataclass(frozen=True)
    class Tally:
        def calls(self, steps):
            return steps

        def init(self, x):
            return SamplerState(x, jnp.zeros((), jnp.int32))

        def step(self, denoise, process, state, t, t_next, keys):
            return SamplerState(state.x + jnp.where(state.history == 0, 100.0, 0.0), state.history + 1)

    path = TimePath(jnp.asarray([0.9, 0.5, 0.6]), jnp.asarray([0.5, 0.2, 0.3]))
    keys = jax.random.split(jax.random.key(1), 20000)
    process = VarianceExploding(0.1, 10.0)
    x = integrate(Tally(), lambda x, t: Prediction(x, x), process, path, jnp.zeros((20000, 1, 1, 1)), keys)
    variance = float(
        process.signal(jnp.asarray(0.6)).sigma ** 2 - process.signal(jnp.asarray(0.2)).sigma ** 2
    )
    assert abs(np.mean(x) - 200.0) < 4 * np.sqrt(variance / 20000)
    assert abs(np.var(x) / variance - 1) < 4 * np.sqrt(2 / 20000)


def test_given_noise_takes_the_place_of_the_images_own():
    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(), 5)
    model = Gaussian(jnp.asarray(0.5), jnp.asarray(0.3)).denoiser(FLOW)

    def make(noise=None):
        return recipe(lambda x, t, c, drop: model(x, t), FLOW, {}, SHAPE[1:], KEYS, noise=noise)

    own = noise_like(jax.vmap(lambda key: jax.random.fold_in(key, PRIOR))(KEYS), jnp.zeros(SHAPE))
    np.testing.assert_array_equal(make(own), make())
    assert np.all(make(-own) != make())


def test_modifiers_act_in_their_order_on_what_is_guided():
    @dataclasses.dataclass(frozen=True)
    class Affine:
        factor: float
        shift: float

        def __call__(self, denoise, process, conditions, keys):
            def modified(x, t):
                found = denoise(x, t)
                return found._replace(x_0=self.factor * found.x_0 + self.shift)

            return modified

    def model(x, t, conditions, drop):
        return Prediction(jnp.where(drop["c"], 0.0, 1.0)[:, None, None, None] + 0 * x, x)

    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(3.0), 1, (Affine(2.0, 0.0), Affine(1.0, 5.0)))
    found = recipe(model, FLOW, {"c": jnp.zeros(2)}, SHAPE[1:], KEYS)
    np.testing.assert_array_equal(found, 2 * 3 + 5)
