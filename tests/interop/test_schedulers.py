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
FOLDERS = {"sd_15": SD_15, "sd_21": SD_21, "sd_xl": SD_XL, "lightning": LIGHTNING, "zero_snr": ZERO_SNR}

NAMES = [name for name in schedulers.NAMES if name not in ("ancestral", "plms")]  # these are ddpm and pndm
LEADING_ONLY, NOT_RESCALED = ("pndm",), ("pndm", "heun", "lms", "deis")
STOCHASTIC = ("ddpm", "eulerancestral", "dpmsolver2msde", "dpmsolver2msdekarras")
QUICK_ONES = ("ddim", "euler", "eulerkarras", "dpmsolver2m", "dpmsolver2mkarras")


def allowed(name, settings):
    regular = settings.get("timestep_spacing", "leading") == "leading" or name not in LEADING_ONLY
    return regular and not (settings.get("rescale_betas_zero_snr") and name in NOT_RESCALED)


def quick(name, folder, steps):
    return steps == 7 and (folder == "sd_15" or (folder in ("sd_xl", "zero_snr") and name in QUICK_ONES))


CASES = [
    pytest.param(name, folder, steps, marks=() if quick(name, folder, steps) else pytest.mark.slow)
    for name, folder, steps in itertools.product(NAMES, FOLDERS, (7, 10, 20, 25))
    if allowed(name, FOLDERS[folder])
]


theirs_warn = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def of(name, *bases, **settings):
    """The settings of a scheduler class, over those of others."""
    merged = {"_class_name": name}
    for base in (*bases, settings):
        merged |= base
    return merged | {"_class_name": name}


DDIM, DDPM, PNDM, EULER = "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"
DPM, UNI_PC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
HEUN, LMS = "HeunDiscreteScheduler", "LMSDiscreteScheduler"
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}

OWN = [
    of(DDIM),  # the defaults of each class
    of(DDPM),
    of(EULER),
    of(HEUN),
    of(LMS),
    of(DPM),
    of(UNI_PC),
    of(DEIS),
    of(PNDM, SD_15, skip_prk_steps=False, set_alpha_to_one=True),
    of(DDIM, SD_BETAS, timestep_spacing="linspace", set_alpha_to_one=False, thresholding=True),
    of(DDIM, SD_21, timestep_spacing="trailing", clip_sample=True, clip_sample_range=0.5),
    of(DDIM, beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
    of(DDPM, variance_type="fixed_large", clip_sample_range=0.7),
    of(DDPM, SD_BETAS, variance_type="fixed_small_log", timestep_spacing="trailing", thresholding=True),
    of(DDPM, beta_schedule="sigmoid", timestep_spacing="linspace", clip_sample=False),
    of(EULER, trained_betas=list(np.linspace(0.001, 0.03, 1000)), prediction_type="sample"),
    of(HEUN, use_karras_sigmas=True, clip_sample=True, clip_sample_range=0.8),
    of(LMS, SD_BETAS, use_karras_sigmas=True, timestep_spacing="trailing"),
    of(DPM, SD_BETAS, algorithm_type="dpmsolver", solver_type="heun", **SIGMA_MIN),
    of(DPM, SD_BETAS, algorithm_type="sde-dpmsolver", solver_order=1, **SIGMA_MIN),
    of(DPM, SD_BETAS, algorithm_type="dpmsolver", solver_order=3, euler_at_final=True, **SIGMA_MIN),
    of(DPM, SD_21, solver_type="bh1", thresholding=True, lower_order_final=False),
    of(DPM, SD_XL, algorithm_type="deis", solver_order=3, lower_order_final=False, **SIGMA_MIN),
    of(UNI_PC, SD_XL, solver_order=3, solver_type="bh1", lower_order_final=False, **SIGMA_MIN),
    of(UNI_PC, SD_BETAS, solver_type="midpoint", use_karras_sigmas=True),
    of(DEIS, SD_21, solver_order=3, algorithm_type="dpmsolver++"),
    of(DEIS, LIGHTNING, solver_order=1, lower_order_final=False),
]  # fmt: skip
TO_OTHERS = [
    ("ddim", of(DPM, SD_BETAS, timestep_spacing="linspace", _use_default_values=["timestep_spacing"])),
    ("euler", of(PNDM, beta_schedule="scaled_linear")),
    ("heun", of(EULER, beta_schedule="scaled_linear")),
    ("unipc", of(DPM, SD_BETAS, solver_type="heun", solver_order=3)),
    ("deis", of(UNI_PC, SD_BETAS, solver_type="bh2", solver_order=3)),
    ("dpmsolver2m", of(UNI_PC, SD_BETAS, solver_type="bh1", solver_order=3)),
]


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


def check(settings, name, steps, tolerance):
    with jax.enable_x64(True):
        expected = theirs(settings, name, steps)
        atol = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(ours(settings, name, steps), expected, rtol=0, atol=atol)


@theirs_warn
@pytest.mark.parametrize(("name", "folder", "steps"), CASES)
def test_samplers_of_published_models_are_diffusers(name, folder, steps):
    # Noise is drawn in single precision, and compiled its last digits differ.
    check(FOLDERS[folder], name, steps, 1e-6 if name in STOCHASTIC else 1e-9)


@theirs_warn
@pytest.mark.parametrize(
    "steps", [pytest.param(7, marks=pytest.mark.slow), 10, pytest.param(16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("settings", OWN, ids=str)
def test_settings_are_those_of_the_class(settings, steps):
    check(settings, None, steps, 1e-6)


@theirs_warn
@pytest.mark.parametrize(("name", "settings"), TO_OTHERS, ids=str)
def test_another_sampler_has_its_own_defaults(name, settings):
    check(settings, name, 9, 1e-9)
