"""Recipes of published schedulers against the installed diffusers: whole loops from the same standard normal noise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.interop import schedulers
from jaxdiff.process.prediction import decode, target, with_label
from jaxdiff.sampling.noise import fold_in, noise_like
from tests import schedulers as peers
from tests.oracles import Mixture
from tests.sampling.solving import QUICK

SHAPE = (1, 1, 2)
NOISE = np.random.default_rng(7).normal(size=(4, *SHAPE))
KEYS = jax.random.split(jax.random.key(0), len(NOISE))
DATA = Mixture(jnp.asarray([0.3, 0.7]), jnp.asarray([[-1.0, 0.5], [0.8, -0.2]]), jnp.asarray([0.4, 0.7]))

# The scheduler_config.json of published models.
SD_BETAS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
SD_15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **SD_BETAS, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SD_21 = {**SD_15, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
SD_XL = {
    **SD_15, "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "prediction_type": "epsilon",
    "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False,
}  # fmt: skip
LIGHTNING = {**SD_XL, "timestep_spacing": "trailing"}
ZERO_SNR = {**SD_21, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
DDPM = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "clip_sample": True}

EVERY = ("ddim", "ddpm", "euler", "eulerkarras", "eulerancestral", "heun", "lms", "dpmsolver1", "dpmsolver2m",
         "dpmsolver2mkarras", "dpmsolver2msde", "dpmsolver2msdekarras", "dpmsolver3m", "unipc", "deis")  # fmt: skip
SAMPLERS = {"pndm": SD_15, "plms": SD_15}


def network(settings):
    """A model's raw output for noisy data and a step, which may be a fraction, for two components of data."""
    process, kind = schedulers.process(settings), schedulers.parameterization(settings)

    def output(x, step):
        t = jnp.minimum((jnp.asarray(step) + 1) / 1000, 1.0)  # compiled, the quotient may be rounded above 1
        x_0, noise, _ = DATA.denoiser(process)(x, t)
        return target(kind, process, t, x_0, noise)

    return output


def ours(settings, name, steps):
    """The samples of a recipe, whose process and noise label the model has."""
    recipe, model = schedulers.recipe(settings, name, steps), network(settings)
    process = recipe.process or schedulers.process(settings)
    kind = schedulers.parameterization(settings)
    kind = with_label(kind, recipe.noise_label or kind.label)

    def denoise(x, t, conditions, drop):
        seen, label = kind.network_input(process, x, jnp.broadcast_to(t, x.shape[:1]))
        return decode(kind, process, t, x, model(seen, label[0]))

    run = jax.jit(
        lambda noise: recipe(denoise, process, {}, SHAPE, KEYS, noise=noise), compiler_options=QUICK
    )
    return np.asarray(run(jnp.asarray(NOISE)))


def draws(steps):
    """The noise of each step of a recipe with `KEYS`."""
    return [np.asarray(noise_like(fold_in(KEYS, index), NOISE), np.float64) for index in range(steps)]


def theirs(settings, name, steps):
    """The samples of the peer, as its pipelines make them."""
    class_name, implied = schedulers.NAMES[name] if name else (settings["_class_name"], {})
    scheduler_class, model = getattr(peers.load(), class_name), jax.jit(network(settings))
    with peers.in_double_precision(scheduler_class, draws(steps)) as torch:
        scheduler = scheduler_class.from_config(settings, **implied)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # it counts from the second of two equal steps otherwise
        x = torch.tensor(NOISE) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            seen = jnp.asarray(scheduler.scale_model_input(x, t).numpy())
            output = torch.tensor(np.asarray(model(seen, float(t))))
            x = scheduler.step(output, t, x).prev_sample
        return x.numpy()


CASES = [
    (name, folder, steps)
    for name, folder, steps in itertools.product(
        EVERY, ("SD_15", "SD_21", "SD_XL", "LIGHTNING", "ZERO_SNR"), (7, 10, 20, 25)
    )
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the peer's own
@pytest.mark.parametrize(("name", "folder", "steps"), CASES)
def test_recipes_are_diffusers(name, folder, steps):
    settings = globals()[folder]
    with jax.enable_x64(True):
        expected = theirs(settings, name, steps)
        np.testing.assert_allclose(
            ours(settings, name, steps), expected, rtol=0, atol=1e-8 * np.abs(expected).max()
        )
