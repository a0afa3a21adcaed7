"""Recipes of published schedulers against the installed diffusers: whole loops from the same standard normal noise."""

import contextlib
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.interop import schedulers
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.prediction import LearnedVariance, Noise, V, decode, target, with_label
from jaxdiff.process.table import LinearBetas, ScaledLinearBetas, Table
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.noise import fold_in, noise_like
from jaxdiff.sampling.recipe import Preset
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.consistency import TrajectoryConsistency
from tests import schedulers as peers
from tests.oracles import Mixture
from tests.sampling.solving import QUICK
from tests.selection import some

SHAPE = (1, 1, 2)
NOISE = np.random.default_rng(7).normal(size=(4, *SHAPE))
KEYS = jax.random.split(jax.random.key(0), len(NOISE))
DATA = Mixture(jnp.asarray([0.3, 0.7]), jnp.asarray([[-1.6, 0.5], [1.3, -0.2]]), jnp.asarray([0.4, 0.7]))
OTHER_DATA = Mixture(jnp.asarray([1.0]), jnp.asarray([[0.3, -0.4]]), jnp.asarray([0.6]))

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
STOCHASTIC = ("ddpm", "eulerancestral", "dpmsolver2msde", "dpmsolver2msdekarras", "tcd", "turbo")
BOUNDARY = ("lcm", "dmd2")  # the peer's boundary condition takes one part in 100,000 from a prediction


def allowed(name, settings):
    if name == "dmd2":  # has four steps
        return False
    regular = settings.get("timestep_spacing", "leading") == "leading" or name not in LEADING_ONLY
    return regular and not (settings.get("rescale_betas_zero_snr") and name in NOT_RESCALED)


def quick(name, folder, steps):
    chosen = folder == "sd_15" or (folder == "zero_snr" and name in ("ddim", "euler"))
    return steps == 7 and chosen


CASES = [
    pytest.param(name, folder, steps, marks=() if quick(name, folder, steps) else pytest.mark.slow)
    for name, folder, steps in itertools.product(NAMES, FOLDERS, (7, 10, 20, 25))
    if allowed(name, FOLDERS[folder])
]


theirs_warn = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def short(value):
    return value.get("_class_name", "none") if isinstance(value, dict) else str(value)


def of(name, *bases, **settings):
    """The settings of a scheduler class, over those of others."""
    merged = {"_class_name": name}
    for base in (*bases, settings):
        merged |= base
    return merged | {"_class_name": name}


DDIM, DDPM, PNDM, EULER = "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"
DPM, UNI_PC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
HEUN, LMS, TCD = "HeunDiscreteScheduler", "LMSDiscreteScheduler", "TCDScheduler"
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
    of(TCD, SD_21, clip_sample=True),
]  # fmt: skip
TO_OTHERS = [
    ("ddim", of(DPM, SD_BETAS, timestep_spacing="linspace", _use_default_values=["timestep_spacing"])),
    ("euler", of(PNDM, beta_schedule="scaled_linear")),
    ("heun", of(EULER, beta_schedule="scaled_linear")),
    ("unipc", of(DPM, SD_BETAS, solver_type="heun", solver_order=3)),
    ("deis", of(UNI_PC, SD_BETAS, solver_type="bh2", solver_order=3)),
    ("dpmsolver2m", of(UNI_PC, SD_BETAS, solver_type="bh1", solver_order=3)),
]


def network(settings, data=DATA):
    """A model's raw output for noisy data and a step, which may be a fraction."""
    process, kind = schedulers.process(settings), schedulers.parameterization(settings)

    def output(x, step):
        t = jnp.minimum((jnp.asarray(step) + 1) / 1000, 1.0)  # compiled, the quotient may be rounded above 1
        x_0, noise, _ = data.denoiser(process)(x, t)
        return target(kind, process, t, x_0, noise)

    return output


def run(recipe, settings, model, **start):
    """The result of a recipe for a model that has its process and its noise label."""
    process = recipe.process or schedulers.process(settings)
    kind = schedulers.parameterization(settings)
    kind = with_label(kind, recipe.noise_label or kind.label)

    def denoise(x, t, conditions, drop):
        seen, label = kind.network_input(process, x, jnp.broadcast_to(t, x.shape[:1]))
        return decode(kind, process, t, x, model(seen, label[0]))

    def sample(start):
        return recipe(denoise, process, {}, SHAPE, KEYS, **start)

    return jax.jit(sample, compiler_options=QUICK)(start)


def draws(steps):
    """The noise of each step of a recipe with `KEYS`."""
    return [
        np.asarray(noise_like(fold_in(KEYS, index), jnp.asarray(NOISE)), np.float64) for index in range(steps)
    ]


class Peer:
    """A scheduler as the pipelines use it."""

    def __init__(self, torch, scheduler_class, settings, implied, steps):
        self.torch, self.scheduler = torch, scheduler_class.from_config(settings, **implied)
        self.scheduler.set_timesteps(steps)
        self.options = {}
        self.begin(0)  # it counts from the second of two equal steps otherwise

    def begin(self, index):
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(index)

    def run(self, model, x, timesteps):
        for t in timesteps:
            seen = jnp.asarray(self.scheduler.scale_model_input(x, t).numpy())
            output = self.torch.tensor(np.asarray(model(seen, float(t))))
            x = self.scheduler.step(output, t, x, **self.options).prev_sample
        return x


@contextlib.contextmanager
def the_peer(settings, name, steps):
    class_name, implied = schedulers.NAMES[name] if name else (settings["_class_name"], {})
    scheduler_class = getattr(peers.load(), class_name)
    with peers.in_double_precision(scheduler_class, draws(steps)) as torch:
        yield lambda: Peer(torch, scheduler_class, settings, implied, steps)


def theirs(settings, name, steps):
    with the_peer(settings, name, steps) as make:
        peer = make()
        x = peer.torch.tensor(NOISE) * peer.scheduler.init_noise_sigma
        return peer.run(jax.jit(network(settings)), x, peer.scheduler.timesteps).numpy()


def ours(settings, name, steps):
    return run(
        schedulers.recipe(settings, name, steps), settings, network(settings), noise=jnp.asarray(NOISE)
    )


def same(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def tolerance(name):
    """Noise is drawn in single precision, and compiled its last digits differ."""
    return 1e-5 if name in BOUNDARY else 1e-6 if name in STOCHASTIC else 1e-9


def check(settings, name, steps, tolerance):
    with jax.enable_x64(True):
        same(ours(settings, name, steps), theirs(settings, name, steps), tolerance)


@pytest.mark.spread(2)
@theirs_warn
@pytest.mark.parametrize(("name", "folder", "steps"), CASES)
def test_samplers_of_published_models_are_diffusers(name, folder, steps):
    check(FOLDERS[folder], name, steps, tolerance(name))


@theirs_warn
@pytest.mark.parametrize("name", schedulers.FEW_STEPS)
@pytest.mark.parametrize("folder", ["sd_15", pytest.param("sd_xl", marks=pytest.mark.slow)])
def test_distilled_models_have_the_steps_of_their_authors(name, folder):
    preset = schedulers.recipes(FOLDERS[folder], 50, ClassifierFree(7.5))[name]
    assert isinstance(preset, Preset)
    assert preset.guidance == ClassifierFree()
    check(FOLDERS[folder], name, preset.steps, tolerance(name))


@theirs_warn
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_trajectory_consistency_with_other_noise_is_diffusers(gamma):
    recipe = schedulers.recipe(SD_XL, "tcd", 5)
    recipe = dataclasses.replace(recipe, sampler=TrajectoryConsistency(gamma))
    with jax.enable_x64(True):
        found = run(recipe, SD_XL, network(SD_XL), noise=jnp.asarray(NOISE))
        with the_peer(SD_XL, "tcd", 5) as make:
            peer = make()
            peer.options = {"eta": gamma}
            x = peer.torch.tensor(NOISE)
            expected = peer.run(jax.jit(network(SD_XL)), x, peer.scheduler.timesteps).numpy()
        same(found, expected, 1e-6)


@pytest.mark.spread(2)
@theirs_warn
@pytest.mark.parametrize(
    "steps", [pytest.param(7, marks=pytest.mark.slow), 10, pytest.param(16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("settings", some(OWN, OWN[::2]), ids=short)
def test_settings_are_those_of_the_class(settings, steps):
    check(settings, None, steps, 1e-6)


@theirs_warn
@pytest.mark.parametrize(("name", "settings"), some(TO_OTHERS, TO_OTHERS[::3]), ids=short)
def test_another_sampler_has_its_own_defaults(name, settings):
    check(settings, name, 9, 1e-9)


@pytest.mark.spread(1)
@theirs_warn
@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("euler", SD_XL, 25),
        ("euler", SD_15, 7),  # whose steps are fractions
        ("ddim", ZERO_SNR, 7),
        ("ddpm", SD_XL, 10),
        ("dpmsolver2m", SD_XL, 10),
        ("dpmsolver3m", SD_15, 16),
        ("unipc", SD_15, 10),
        ("deis", SD_XL, 12),
    ],
    ids=short,
)
@pytest.mark.parametrize("fraction", [0.8, pytest.param(0.55, marks=pytest.mark.slow)])
def test_a_second_model_continues_as_sdxls_refiner(name, settings, steps, fraction):
    """``denoising_end`` of the one pipeline and ``denoising_start`` of the other, which begins anew."""
    first, second = jax.jit(network(settings)), jax.jit(network(settings, OTHER_DATA))
    with jax.enable_x64(True):
        with the_peer(settings, name, steps) as make:
            base, refiner = make(), make()
            timesteps = base.scheduler.timesteps
            done = int((timesteps >= round(1000 - fraction * 1000)).sum())
            x = base.torch.tensor(NOISE) * base.scheduler.init_noise_sigma
            x = base.run(first, x, timesteps[:done])
            refiner.begin(done)
            expected = refiner.run(second, x, timesteps[done:]).numpy()
        recipe, t = schedulers.recipe(settings, name, steps), schedulers.handover(fraction)
        x = run(dataclasses.replace(recipe, until=t), settings, first, noise=jnp.asarray(NOISE))
        found = run(dataclasses.replace(recipe, below=t), settings, second, x=x)
        same(found, expected, 1e-6 if name in STOCHASTIC else 1e-9)


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({}, "dpmsolver9", "sampler='dpmsolver9': expected one of ddim"),
        (of("IPNDMScheduler", SD_BETAS), None, "_class_name='IPNDMScheduler': expected one of DDIM"),
        (of("LCMScheduler", timestep_scaling=5.0), None, "timestep_scaling=5.0: expected 10.0"),
        (of("FlowMatchEulerDiscreteScheduler", shift=3.0), "euler", "_class_name=.*a scheduler with betas"),
        (of(DDPM, beta_schedule="laplace"), None, "beta_schedule='laplace'"),
        (of(DDIM, prediction_type="flow"), None, "prediction_type='flow'"),
        (of(DDIM, timestep_spacing="log"), None, "timestep_spacing='log'"),
        (of(DDIM, thresholding=True, sample_max_value=2.0), None, "sample_max_value=2.0"),
        (of(DDPM, variance_type="learned"), None, "variance_type='learned'"),
        (of(DDPM, variance_type="fixed_large", steps_offset=1), None, "variance_type='fixed_large'"),
        (LIGHTNING, "pndm", "timestep_spacing='trailing'"),
        (of(PNDM, prediction_type="sample"), None, "prediction_type='sample'"),
        (ZERO_SNR, "heun", "rescale_betas_zero_snr=True: expected False with HeunDiscreteScheduler"),
        (of(EULER, use_beta_sigmas=True), None, "use_beta_sigmas=True"),
        (of(EULER, interpolation_type="log_linear"), None, "interpolation_type='log_linear'"),
        (of(EULER, timestep_type="continuous"), None, "timestep_type='continuous'"),
        (of(EULER, **SIGMA_MIN), None, "final_sigmas_type='sigma_min'"),
        (of(EULER, sigma_max=80.0), None, "sigma_max=80.0"),
        (of(DPM, algorithm_type="dpmsolver"), None, "final_sigmas_type='zero'"),
        (
            of(DPM, algorithm_type="sde-dpmsolver++", solver_order=3),
            None,
            "solver_order=3: expected 1 or 2 with",
        ),
        (of(DPM, use_lu_lambdas=True), None, "use_lu_lambdas=True"),
        (of(DPM, use_flow_sigmas=True), None, "use_flow_sigmas=True"),
        (of(DPM, use_karras_sigmas=True, **SIGMA_MIN), None, "use_karras_sigmas=True"),
        (of(DPM, use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2"), None, "use_karras_sigmas=True"),
        (of(UNI_PC, lower_order_final=False), None, "lower_order_final=False"),
        (of(UNI_PC, disable_corrector=[0]), None, r"disable_corrector=\(0,\)"),
        (of(UNI_PC, predict_x0=False), None, "predict_x0=False"),
        (of(DEIS, use_karras_sigmas=True), None, "use_karras_sigmas=True"),
        (of(DEIS, thresholding=True), None, "thresholding=True"),
    ],
    ids=short,
)
def test_what_has_no_equivalent_is_refused(settings, name, message):
    with pytest.raises(UserError, match=message) as error:
        schedulers.recipe(settings, name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_a_handover_is_inside(fraction):
    with pytest.raises(UserError, match="fraction="):
        schedulers.handover(fraction)


def test_recipes_of_all_names_that_the_settings_allow():
    guidance = ClassifierFree(7.5)
    found = schedulers.recipes(ZERO_SNR, 12, guidance)
    assert set(schedulers.NAMES) - set(found) == {"pndm", "plms", "heun", "lms", "deis"}
    assert found["unipc"] == schedulers.recipe(ZERO_SNR, "UniPC", 12, guidance)
    usual = [recipe for name, recipe in found.items() if name not in schedulers.FEW_STEPS]
    assert {(recipe.steps, recipe.guidance) for recipe in usual} == {(12, guidance)}
    stored = from_json(to_json(describe(found)))
    assert build(stored) == found


def test_a_folder_without_settings_has_ddpms():
    assert schedulers.process({}) == VariancePreserving(Table(LinearBetas()))
    assert schedulers.parameterization({}) == Noise(StepIndex())
    assert schedulers.parameterization({}, learned_variance=True) == LearnedVariance(Noise(StepIndex()))
    assert schedulers.recipe({}).sampler == Ancestral()


def test_a_published_model_is_trained_on_the_table_of_its_betas():
    """Details of a sampler are those of its recipe."""
    plain = VariancePreserving(Table(ScaledLinearBetas()))
    assert schedulers.process(SD_15) == schedulers.process(SD_XL) == plain
    assert schedulers.process(ZERO_SNR).schedule.log_snr(jnp.ones(())) == -jnp.inf
    assert schedulers.process(of(EULER, ZERO_SNR)) == schedulers.process(ZERO_SNR)
    assert schedulers.recipe(SD_15).process is schedulers.recipe(ZERO_SNR, "ddim").process is None
    assert isinstance(schedulers.parameterization(SD_21), V)
    assert schedulers.process(of("LCMScheduler", SD_BETAS)) == plain
