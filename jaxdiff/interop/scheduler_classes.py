"""The scheduler classes of diffusers: their defaults, what of them is known here, and how each samples."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.interop import scheduler_recipes as recipes
from jaxdiff.interop.scheduler_recipes import Settings
from jaxdiff.sampling.samplers.adams import Lms
from jaxdiff.sampling.samplers.ddim import EulerAncestral
from jaxdiff.sampling.samplers.heun import Euler, Heun

Known = Mapping[str, tuple[Any, ...]]
"""Fields that have an equivalent for some values only, and these values."""


@dataclasses.dataclass(frozen=True)
class SchedulerClass:
    """A scheduler class of diffusers.

    Attributes:
      defaults: of its settings.
      known: settings with an equivalent for some values only.
      recipe: from all settings to the fields of a `Recipe`, but steps, guidance and process.
      divides_by_alpha: whether pure noise has ``alpha^2 = 2^-24``.
      fractional: whether linear spacing gives fractional steps, between which ``sigma / alpha`` is linear.
    """

    defaults: Settings
    known: Known
    recipe: Callable[[Settings], dict[str, Any]]
    divides_by_alpha: bool = False
    fractional: bool = False

    def linear(self, settings: Settings) -> str:
        """`Table.linear` of the process that is sampled."""
        return "sigma / alpha" if self.fractional and not settings.get("use_karras_sigmas") else "log_snr"


GENERAL: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon", "steps_offset": 0, "timestep_spacing": "linspace",
}  # fmt: skip
LEADING = {"timestep_spacing": "leading"}
ZERO_SNR = {"rescale_betas_zero_snr": False}
CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False, "sample_max_value": 1.0}
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
FLOWS = {"use_flow_sigmas": False}
DISTILLED: dict[str, Any] = {
    **GENERAL, **CLIPPED, **ZERO_SNR, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "original_inference_steps": 50, "timestep_scaling": 10.0,
}  # fmt: skip
OUTPUTS = ("epsilon", "v_prediction", "sample")
SOLVER: dict[str, Any] = {
    **GENERAL, **SIGMAS, **FLOWS, "solver_order": 2, "thresholding": False, "sample_max_value": 1.0,
    "lower_order_final": True,
}  # fmt: skip


def _only(*fields: Settings, **others: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    """Fields that are known with their defaults only, and `others` with the given values."""
    return {name: (value,) for each in fields for name, value in each.items()} | others


WITHOUT_KARRAS = _only(SIGMAS, FLOWS)
WITH_KARRAS = _only(SIGMAS) | {"use_karras_sigmas": (False, True), "prediction_type": OUTPUTS}
ORDERS = {"solver_order": (1, 2, 3), "prediction_type": OUTPUTS}

CLASSES: dict[str, SchedulerClass] = {
    "DDIMScheduler": SchedulerClass(
        {**GENERAL, **LEADING, **CLIPPED, **ZERO_SNR, "set_alpha_to_one": True},
        {"prediction_type": OUTPUTS},
        recipes.ddim,
    ),
    "DDPMScheduler": SchedulerClass(
        {**GENERAL, **LEADING, **CLIPPED, **ZERO_SNR, "variance_type": "fixed_small"},
        _only(
            prediction_type=OUTPUTS,
            variance_type=("fixed_small", "fixed_small_log", "fixed_large", "learned_range"),
        ),
        recipes.ddpm,
    ),
    "LCMScheduler": SchedulerClass(DISTILLED, {"prediction_type": OUTPUTS, "timestep_scaling": (10.0,)}, recipes.lcm),
    "TCDScheduler": SchedulerClass(DISTILLED, {"prediction_type": OUTPUTS}, recipes.tcd),
    "UnCLIPScheduler": SchedulerClass(
        {
            **GENERAL, "beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_small_log", "clip_sample": True,
            "clip_sample_range": 1.0,
        },
        {"beta_schedule": ("squaredcos_cap_v2",), "trained_betas": (None,), "prediction_type": ("epsilon", "sample"),
         "variance_type": ("fixed_small_log", "learned_range")},
        recipes.unclip,
    ),
    "PNDMScheduler": SchedulerClass(
        {**GENERAL, **LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
        _only(LEADING, prediction_type=("epsilon", "v_prediction")),
        recipes.pndm,
    ),
    "EulerDiscreteScheduler": SchedulerClass(
        {
            **GENERAL, **SIGMAS, **ZERO_SNR, "interpolation_type": "linear", "sigma_min": None, "sigma_max": None,
            "timestep_type": "discrete", "final_sigmas_type": "zero",
        },
        WITH_KARRAS | _only(
            interpolation_type=("linear",), sigma_min=(None,), sigma_max=(None,), timestep_type=("discrete",),
            final_sigmas_type=("zero",),
        ),
        recipes.in_sigma(Euler()),
        divides_by_alpha=True,
        fractional=True,
    ),
    "EulerAncestralDiscreteScheduler": SchedulerClass(
        {**GENERAL, **ZERO_SNR},
        {"prediction_type": ("epsilon", "v_prediction")},
        recipes.in_sigma(EulerAncestral()),
        divides_by_alpha=True,
        fractional=True,
    ),
    "HeunDiscreteScheduler": SchedulerClass(
        {
            **GENERAL, **SIGMAS, "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
            "clip_sample_range": 1.0,
        },
        WITH_KARRAS,
        recipes.in_sigma(Heun()),
        fractional=True,
    ),
    "LMSDiscreteScheduler": SchedulerClass(
        {**GENERAL, **SIGMAS}, WITH_KARRAS, recipes.in_sigma(Lms(), t_end=0.0), fractional=True
    ),
    "DPMSolverMultistepScheduler": SchedulerClass(
        {
            **SOLVER, **ZERO_SNR, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": False,
            "final_sigmas_type": "zero", "use_lu_lambdas": False, "lambda_min_clipped": -math.inf,
        },
        WITH_KARRAS | ORDERS | _only(
            FLOWS, use_lu_lambdas=(False,), lambda_min_clipped=(-math.inf,),
            algorithm_type=("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis"),
            solver_type=("midpoint", "heun", "logrho", "bh1", "bh2"), final_sigmas_type=("zero", "sigma_min"),
        ),
        recipes.dpm_solver,
        divides_by_alpha=True,
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        {
            **SOLVER, **ZERO_SNR, "solver_type": "bh2", "predict_x0": True, "disable_corrector": (), "solver_p": None,
            "final_sigmas_type": "zero",
        },
        WITH_KARRAS | ORDERS | _only(
            FLOWS, predict_x0=(True,), disable_corrector=((),), solver_p=(None,), thresholding=(False,),
            solver_type=("bh1", "bh2", "midpoint", "heun", "logrho"), final_sigmas_type=("zero", "sigma_min"),
        ),
        recipes.uni_pc,
        divides_by_alpha=True,
    ),
    "DEISMultistepScheduler": SchedulerClass(
        {**SOLVER, "algorithm_type": "deis", "solver_type": "logrho"},
        WITHOUT_KARRAS | ORDERS | _only(
            thresholding=(False,), algorithm_type=("deis", "dpmsolver", "dpmsolver++"),
            solver_type=("logrho", "midpoint", "heun", "bh1", "bh2"),
        ),
        recipes.deis,
    ),
}  # fmt: skip
"""By name. Settings that change nothing here, such as `variance_type` of solvers, are left out."""
