"""Sampling of flow maps: from the exact map of Gaussian data any number of steps reaches the end of the trajectory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import Process, RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.loop import integrate, sample
from jaxdiff.sampling.modifiers.inpainting import Replacement
from jaxdiff.sampling.protocols import GuidedDenoiser, KnownData, stateless
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.flow_map import FlowMap
from tests.oracles import Gaussian

STD = 0.7
DATA = Gaussian(np.zeros((1, 3, 2, 1)), np.full((1, 3, 2, 1), STD))
PROCESSES = [VarianceExploding(), VariancePreserving(Cosine()), RectifiedFlow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)
KEYS = jax.random.split(jax.random.key(0), 4)


def start():
    """Noisy data of four examples, in the precision of the test."""
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 2, 1)))


def exact_map(process, x_t, t, r):
    """The pair whose line from x_t meets the trajectory at r; at r = t the posterior mean.

    In z = x / alpha and rho = sigma / alpha the trajectory is ``z ~ q(rho) = hypot(STD, rho)``, and the mean slope is
    ``z_t (q_t - q_r) / (q_t (rho_t - rho_r))`` without the common factor.
    """
    alpha, sigma = process.signal(t)
    rho, rho_r = (jnp.exp(-process.log_snr(time) / 2) for time in (t, r))
    q, q_r = jnp.hypot(STD, rho), jnp.hypot(STD, rho_r)
    noise = x_t / alpha * (rho + rho_r) / (q * (q + q_r))
    return Prediction((x_t - sigma * noise) / alpha, noise)


def flow_map(process):
    """The exact map; without the end of a step it is the posterior mean."""
    plain = stateless(lambda x, t: exact_map(process, x, t, t))
    return GuidedDenoiser(
        plain.call, plain.init, lambda r: stateless(lambda x, t: exact_map(process, x, t, r))
    )


@each_process
@pytest.mark.parametrize("times", [[0.9], [0.9, 0.3], [0.9, 0.7, 0.4, 0.1]], ids=len)
def test_any_number_of_steps_reaches_the_end_of_the_trajectory(process, times):
    t, end = jnp.asarray(0.9), jnp.asarray(0.0)
    found = sample(FlowMap(), flow_map(process), process, jnp.asarray(times), start(), KEYS)
    # At time 0 a variance-exploding process has a little noise left: there the line to r = 0 goes on to the data.
    exact = process.signal(end).sigma == 0
    expected = DATA.flow(process, start(), t, end)
    np.testing.assert_allclose(found, expected, rtol=1e-9 if exact else 5e-3)


@each_process
def test_a_step_ends_where_the_flow_does(process):
    t, r = jnp.asarray(0.8), jnp.asarray(0.35)
    found = integrate(FlowMap(), flow_map(process), process, jnp.stack([t, r]), start(), KEYS)
    np.testing.assert_allclose(found, DATA.flow(process, start(), t, r), rtol=1e-9)


@each_process
def test_other_samplers_see_the_plain_denoiser(process):
    """DDIM takes the posterior mean at each time, and so it converges to the map with its first order."""
    t, r = jnp.asarray(0.8), jnp.asarray(0.35)

    def error(steps):
        times = jnp.linspace(t, r, steps + 1)
        with_map = integrate(Ddim(), flow_map(process), process, times, start(), KEYS)
        plain = integrate(Ddim(), DATA.denoiser(process), process, times, start(), KEYS)
        np.testing.assert_allclose(with_map, plain, rtol=1e-9)
        return float(jnp.max(jnp.abs(with_map - DATA.flow(process, start(), t, r))))

    assert 1.8 < error(40) / error(80) < 2.2


@dataclasses.dataclass(frozen=True)
class Model:
    """The exact map of a process as a model with a condition that changes nothing."""

    process: Process
    end: jax.Array | None = None

    def __call__(self, x, t, conditions, drop):
        return exact_map(self.process, x, t, t if self.end is None else self.end)

    def until(self, t_next):
        return Model(self.process, t_next)


def recipe(**changes):
    options = {"sampler": FlowMap(), "grid": Uniform(0.9), "guidance": ClassifierFree(), "steps": 1}
    return Recipe(**{**options, **changes})


def conditions():
    return {"size": jnp.ones(4)}


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_recipe_takes_one_call_for_each_step(steps):
    process = RectifiedFlow()
    made = recipe(steps=steps)
    assert made.calls(process) == steps
    found = made(Model(process), process, conditions(), (3, 2, 1), KEYS, x=start())
    expected = DATA.flow(process, start(), jnp.asarray(0.9), jnp.asarray(0.0))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "guidance", [ClassifierFree(3.0), ClassifierFree(3.0, interval=Interval(0.0, 1.0))], ids=str
)
def test_guidance_is_built_around_the_model_of_each_step(guidance):
    """Both branches are told the end of the step: where they agree, guidance changes nothing."""
    process = RectifiedFlow()
    found = recipe(steps=3, guidance=guidance)(
        Model(process), process, conditions(), (3, 2, 1), KEYS, x=start()
    )
    expected = DATA.flow(process, start(), jnp.asarray(0.9), jnp.asarray(0.0))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_modifiers_see_the_prediction_of_the_whole_step():
    process, seen = RectifiedFlow(), []

    class Watching:
        def __call__(self, denoise, process, conditions, keys):
            def change(prediction, x, t):
                seen.append(prediction.x_0)
                return prediction

            return denoise.then(change)

    with jax.disable_jit():
        made = recipe(modifiers=(Watching(),), steps=2)
        made(Model(process), process, conditions(), (3, 2, 1), KEYS, x=start())
    expected = DATA.flow(process, start(), jnp.asarray(0.9), jnp.asarray(0.0))
    np.testing.assert_allclose(seen[-1], expected, rtol=1e-9)


def test_known_pixels_stay_and_the_others_follow_the_map():
    process = RectifiedFlow()
    values, mask = jnp.full((4, 3, 2, 1), 0.25), jnp.ones((4, 3, 2, 1), bool).at[:, 0].set(False)
    noise = jnp.asarray(np.random.default_rng(1).standard_normal((4, 3, 2, 1)))
    made = recipe(steps=2, grid=Uniform(0.9), inpainting=Replacement())
    known, seen = KnownData(values, mask), []
    with jax.disable_jit():
        found = made(
            Model(process), process, conditions(), (3, 2, 1), KEYS, noise=noise, known=known,
            observe=lambda step, x_0: seen.append(x_0),
        )  # fmt: skip
    assert len(seen) == 2
    for x_0 in seen:  # of each call, not only in the result
        np.testing.assert_array_equal(x_0[:, 0], values[:, 0])
    np.testing.assert_array_equal(found[:, 0], values[:, 0])
    expected = DATA.flow(process, 0.9 * noise, jnp.asarray(0.9), jnp.asarray(0.0))
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], rtol=1e-9)


def test_a_denoiser_that_cannot_be_told_the_end_of_a_step_is_refused():
    with pytest.raises(UserError, match=r"sampling.sampler='FlowMap': expected a denoiser that .* Fix: "):
        sample(
            FlowMap(), DATA.denoiser(RectifiedFlow()), RectifiedFlow(), jnp.asarray([0.9, 0.3]), start(), KEYS
        )
