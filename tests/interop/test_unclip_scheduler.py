"""Karlo's sampler: whole loops of diffusers' `UnCLIPScheduler` in double precision, with given noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop import schedulers
from jaxdiff.process.prediction import decode, target
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.samplers.ddim import Ddim
from tests import schedulers as peers
from tests.interop.test_schedulers import DATA, KEYS, SHAPE
from tests.sampling.solving import QUICK

KINDS = {
    "prior": {"prediction_type": "sample", "clip_sample_range": 5.0},
    "decoder": {"variance_type": "learned_range"},
    "upscaler": {},
    "unclipped": {"prediction_type": "sample", "clip_sample": False},
}


def settings_of(kind):
    return {"_class_name": "UnCLIPScheduler", "num_train_timesteps": 1000, **KINDS[kind]}


def model(settings, learned):
    """A model's raw output for noisy data and a step."""
    process, kind = schedulers.process(settings), schedulers.parameterization(settings)

    def output(x, step):
        t = (jnp.asarray(step) + 1) / 1000
        x_0, noise, _ = DATA.denoiser(process)(x, t)
        mean = target(kind, process, t, 1.3 * x_0, noise)  # some of it is clipped
        return jnp.concatenate([mean, jnp.sin(3 * x)], axis=-1) if learned else mean

    return output


def theirs(settings, steps, noise, network):
    scheduler_class = peers.load().UnCLIPScheduler
    with peers.in_double_precision(scheduler_class, (x.transpose(0, 3, 1, 2) for x in noise[1:])) as torch:
        scheduler = scheduler_class.from_config(settings)
        scheduler.set_timesteps(steps)
        x = torch.tensor(noise[0].transpose(0, 3, 1, 2)) * scheduler.init_noise_sigma
        times = [int(t) for t in scheduler.timesteps]
        for t, after in zip(times, [*times[1:], None], strict=True):
            output = np.asarray(network(jnp.asarray(x.numpy().transpose(0, 2, 3, 1)), float(t)))
            output = torch.tensor(output.transpose(0, 3, 1, 2))
            x = scheduler.step(output, t, x, prev_timestep=after).prev_sample
        return x.numpy().transpose(0, 2, 3, 1)


def ours(settings, steps, noise, network, learned):
    recipe, process = schedulers.recipe(settings, None, steps), schedulers.process(settings)
    kind = schedulers.parameterization(settings, learned)

    def denoise(x, t, conditions, drop):
        return decode(kind, process, t, x, network(x, 1000 * t - 1))

    def sample(noise):
        return recipe(denoise, process, {}, SHAPE, KEYS, noise=noise[0], draws=noise[1:])

    return jax.jit(sample, compiler_options=QUICK)(jnp.asarray(noise))


@pytest.mark.spread(2)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("steps", [2, 7, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_loops_with_given_noise_are_diffusers(kind, steps):
    settings, learned = settings_of(kind), kind == "decoder"
    noise = np.random.default_rng(steps).normal(size=(steps, 4, *SHAPE))
    with jax.enable_x64(True):
        network = jax.jit(model(settings, learned))
        expected = theirs(settings, steps, noise, network)
        found = ours(settings, steps, noise, network, learned)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "linear"}, "beta_schedule='linear'"),
        ({"prediction_type": "v_prediction"}, "prediction_type='v_prediction'"),
        ({"variance_type": "fixed_large"}, "variance_type='fixed_large'"),
    ],
)
def test_what_the_class_lacks_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        schedulers.recipe(settings_of("prior") | changes)


def test_draws_that_a_sampler_does_not_take_are_refused():
    process = schedulers.process(settings_of("prior"))
    recipe = schedulers.recipe(settings_of("prior"), None, 5, ClassifierFree())
    assert recipe.draws_of_steps(process) == 4
    noise = jnp.zeros((4, 4, *SHAPE))

    def sample(recipe, draws):
        return recipe(lambda *arguments: None, process, {}, SHAPE, KEYS, draws=draws)

    with pytest.raises(UserError, match="draws=3: expected one for each of 4 steps"):
        sample(recipe, noise[:3])
    still = schedulers.recipe(settings_of("prior") | {"beta_schedule": "squaredcos_cap_v2"}, "ddim", 5)
    assert isinstance(still.sampler, Ddim)
    assert still.draws_of_steps(process) == 0
    with pytest.raises(UserError, match="a sampler that adds noise"):
        sample(still, noise)
