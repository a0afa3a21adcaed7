"""The loop carries the sampler's history and the guidance state, and returns data to noise where a path does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.grids.continuous import LogSnrUniform, Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.guidance.rules import Projected
from jaxdiff.sampling.inversion import invert
from jaxdiff.sampling.loop import integrate, sample
from jaxdiff.sampling.noise import noise_like
from jaxdiff.sampling.protocols import GuidedDenoiser, SamplerState, TimePath, stateless
from jaxdiff.sampling.recipe import PRIOR, Recipe
from jaxdiff.sampling.samplers.adams import AdamsBashforth, Deis, Lms
from jaxdiff.sampling.samplers.adaptive import Rk45, RungeKutta4
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.ddim import Ddim, EulerAncestral
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver1, DpmSolver2M, DpmSolver3M
from jaxdiff.sampling.samplers.dpm_solver_single import DpmSolver2, DpmSolver2S, DpmSolver3, DpmSolverSde
from jaxdiff.sampling.samplers.heun import Euler, Heun
from jaxdiff.sampling.samplers.pndm import Plms, Pndm
from jaxdiff.sampling.samplers.sa_solver import SaSolver
from jaxdiff.sampling.samplers.unipc import UniPc
from tests.oracles import Gaussian

FLOW = RectifiedFlow()
KEYS = jax.random.split(jax.random.key(0), 2)
SHAPE = (2, 1, 1, 1)
SAMPLERS = [
    AdamsBashforth(), Deis(), Lms(), RungeKutta4(), Ancestral(), Ddim(), Ddim(1.0), EulerAncestral(), DpmSolver1(),
    DpmSolver2M(), DpmSolver3M(), DpmSolver2(), DpmSolver2S(), DpmSolver3(), DpmSolverSde(), DpmSolverSde(eta=0.0),
    Euler(), Euler(churn=0.2), Heun(), Heun(churn=0.2), Plms(), Pndm(), SaSolver(), UniPc(),
]  # fmt: skip


def counting():
    """A denoiser that predicts the number of calls so far as x_0, and keeps that number as its state."""

    def call(x, t, count):
        return Prediction(count + 1 + 0 * x, 0 * x), count + 1

    return GuidedDenoiser(call, lambda x: jnp.zeros((), x.dtype))


@pytest.mark.spread(3)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_guidance_state_passes_through_all_calls_of_all_steps(sampler):
    times = jnp.asarray([0.99, 0.8, 0.7, 0.5, 0.4, 0.2])
    found = sample(sampler, counting(), FLOW, times, jnp.zeros(SHAPE), KEYS)
    np.testing.assert_array_equal(found, sampler.calls(5) + 1)


@pytest.mark.parametrize("iterations", [0, 2])
def test_the_guidance_state_passes_through_an_inversion(iterations):
    """x_0 counts the calls, and the noise is 0: each step divides by alpha and multiplies by the next one."""

    def call(x, t, count):
        return Prediction(x, count + 1 + 0 * x), count + 1

    denoise = GuidedDenoiser(call, lambda x: jnp.zeros((), x.dtype))
    found = invert(
        denoise, VarianceExploding(), jnp.asarray([0.6, 0.5, 0.4]), jnp.zeros(SHAPE), KEYS, iterations
    )
    sigma = np.asarray(VarianceExploding().signal(jnp.asarray([0.4, 0.5, 0.6])).sigma)
    calls = 1 + iterations  # per step; the last one gives the step
    np.testing.assert_allclose(found, calls * (sigma[1] - sigma[0]) + 2 * calls * (sigma[2] - sigma[1]))


def test_adaptive_steps_refuse_guidance_with_state_before_compiling():
    def model(x, t, conditions, drop):
        return Prediction(0 * x, x)

    for momentum, fits in ((-0.5, False), (0.0, True)):
        guidance = ClassifierFree(2.0, Projected(momentum=momentum))
        recipe = Recipe(Rk45(), LogSnrUniform(-5.0, 5.0), guidance, 3)
        if fits:
            recipe(model, FLOW, {"c": jnp.zeros(2)}, SHAPE[1:], KEYS)
            continue
        with pytest.raises(UserError, match=r"^sampling\.guidance=.*without momentum"):
            recipe(model, FLOW, {"c": jnp.zeros(2)}, SHAPE[1:], KEYS)


def test_a_changed_denoiser_keeps_its_state():
    changed = counting().then(lambda found, x, t: found._replace(x_0=10 * found.x_0))
    times = jnp.asarray([0.7, 0.5])
    np.testing.assert_array_equal(sample(Ddim(), changed, FLOW, times, jnp.zeros(SHAPE), KEYS), 20)


def test_a_plain_function_is_a_denoiser_without_state():
    denoise = stateless(lambda x, t: Prediction(x, t * x))
    x, t = jnp.ones(SHAPE), jnp.asarray(0.5)
    assert denoise.init(x) == ()
    np.testing.assert_array_equal(denoise(x, t).noise, 0.5)
    assert stateless(denoise) is denoise


def test_a_path_that_returns_to_noise_resets_the_history():
    """A sampler that counts its steps; afterwards the data have the variance of their noise level."""

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


def test_returning_to_noise_does_not_reset_the_guidance_state():
    path = TimePath(jnp.asarray([0.9, 0.5, 0.6]), jnp.asarray([0.5, 0.2, 0.3]))
    np.testing.assert_array_equal(sample(Heun(), counting(), FLOW, path, jnp.zeros(SHAPE), KEYS), 7)


def test_given_noise_replaces_the_noise_of_the_keys():
    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(), 5)
    model = Gaussian(jnp.asarray(0.5), jnp.asarray(0.3)).denoiser(FLOW)

    def draw(noise=None):
        return recipe(lambda x, t, c, drop: model(x, t), FLOW, {}, SHAPE[1:], KEYS, noise=noise)

    own = noise_like(jax.vmap(lambda key: jax.random.fold_in(key, PRIOR))(KEYS), jnp.zeros(SHAPE))
    np.testing.assert_array_equal(draw(own), draw())
    assert np.all(draw(-own) != draw())


def test_modifiers_act_in_their_order_on_the_guided_prediction():
    @dataclasses.dataclass(frozen=True)
    class Affine:
        factor: float
        shift: float

        def __call__(self, denoise, process, conditions, keys):
            return denoise.then(lambda found, x, t: found._replace(x_0=self.factor * found.x_0 + self.shift))

    def model(x, t, conditions, drop):
        return Prediction(jnp.where(drop["c"], 0.0, 1.0)[:, None, None, None] + 0 * x, x)

    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(3.0), 1, (Affine(2.0, 0.0), Affine(1.0, 5.0)))
    found = recipe(model, FLOW, {"c": jnp.zeros(2)}, SHAPE[1:], KEYS)
    np.testing.assert_array_equal(found, 2 * 3 + 5)
