"""Published schedulers: a diffusers ``scheduler_config.json`` to a process, a parameterization and recipes.

A recipe for another sampler than the folder's is what diffusers makes by ``OtherScheduler.from_config(settings)``: the
fields that the file names apply, and all others have the defaults of the other class. How the classes sample is in
`scheduler_classes`.
"""

import dataclasses
from typing import Any

from jaxdiff.errors import UserError, expect
from jaxdiff.interop.config_fields import COUNT, FLAG, INDEX, NUMBER, NUMBERS, TEXT, TEXTS, check, optional
from jaxdiff.interop.scheduler_classes import CLASSES, GENERAL, SchedulerClass, Settings
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.prediction import Data, LearnedVariance, Noise, Parameterization, V
from jaxdiff.process.table import (
    Betas,
    BetaSequence,
    CosineBetas,
    LinearBetas,
    ScaledLinearBetas,
    SigmoidBetas,
    Table,
)
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.names import plain
from jaxdiff.sampling.protocols import Guidance
from jaxdiff.sampling.recipe import Preset, Recipe

FIELDS = {
    "_class_name": TEXT, "_use_default_values": TEXTS, "num_train_timesteps": COUNT, "beta_start": NUMBER,
    "beta_end": NUMBER, "beta_schedule": TEXT, "trained_betas": optional(NUMBERS), "prediction_type": TEXT,
    "steps_offset": INDEX, "timestep_spacing": TEXT, "rescale_betas_zero_snr": FLAG, "clip_sample": FLAG,
    "clip_sample_range": NUMBER, "thresholding": FLAG, "sample_max_value": NUMBER, "set_alpha_to_one": FLAG,
    "skip_prk_steps": FLAG, "use_karras_sigmas": optional(FLAG), "solver_order": COUNT, "lower_order_final": FLAG,
    "euler_at_final": FLAG, "original_inference_steps": COUNT, "timestep_scaling": NUMBER,
}  # fmt: skip
"""Types of the settings. Those that are one of a few values are looked up among these."""

SCHEDULES: dict[str, type] = {
    "linear": LinearBetas,
    "scaled_linear": ScaledLinearBetas,
    "sigmoid": SigmoidBetas,
}
PREDICTIONS: dict[str, type] = {"epsilon": Noise, "sample": Data, "v_prediction": V}
LAST_ALPHA_SQUARED = 2.0**-24
"""Of classes that divide by alpha, in place of 0."""

OFF = ClassifierFree()
_RECIPE = [field.name for field in dataclasses.fields(Recipe)]

SDE = {"algorithm_type": "sde-dpmsolver++"}
KARRAS = {"use_karras_sigmas": True}
TRAILING = {"timestep_spacing": "trailing"}
NAMES: dict[str, tuple[str, Settings]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "ancestral": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "eulerkarras": ("EulerDiscreteScheduler", KARRAS),
    "eulerancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmsolver1": ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    "dpmsolver2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpmsolver2mkarras": ("DPMSolverMultistepScheduler", {"solver_order": 2, **KARRAS}),
    "dpmsolver2msde": ("DPMSolverMultistepScheduler", {"solver_order": 2, **SDE}),
    "dpmsolver2msdekarras": ("DPMSolverMultistepScheduler", {"solver_order": 2, **SDE, **KARRAS}),
    "dpmsolver3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "dmd2": ("LCMScheduler", {"original_inference_steps": 4}),
    "hypersd": ("DDIMScheduler", TRAILING),
    "lightning": ("EulerDiscreteScheduler", TRAILING),
    "turbo": ("EulerAncestralDiscreteScheduler", TRAILING),
}
"""Names of samplers: the class in diffusers, and settings that the name implies."""

FEW_STEPS = {"lcm": 4, "tcd": 4, "dmd2": 4, "hypersd": 4, "lightning": 4, "turbo": 1}
"""Names of samplers for distilled models, and the number of steps that their authors sample them with, unguided."""


def process(settings: Settings) -> VariancePreserving:
    """The noise process that a model with these settings was trained on; DDPM's for ``{}``.

    Raises:
      UserError: betas that are unknown here, or a scheduler without betas.
    """
    return VariancePreserving(_table(_own(settings)))


def parameterization(settings: Settings, learned_variance: bool = False) -> Parameterization:
    """What a model with these settings predicts; noise for ``{}``.

    Args:
      settings: of the scheduler.
      learned_variance: whether the network has twice the channels, for a variance.

    Raises:
      UserError: an unknown `prediction_type`.
    """
    own = _own(settings)
    kind = own["prediction_type"]
    expect(kind in PREDICTIONS, "prediction_type", kind, _listed(PREDICTIONS), "use such a scheduler")
    mean = PREDICTIONS[kind](label=StepIndex(own["num_train_timesteps"]))
    return LearnedVariance(mean) if learned_variance else mean


def recipe(settings: Settings, name: str | None = None, steps: int = 50, guidance: Guidance = OFF) -> Recipe:
    """The recipe of the scheduler with these settings, or of another sampler for the same model.

    Args:
      settings: of the folder's scheduler, with its ``_class_name``; DDPM's for ``{}``.
      name: one of `NAMES`, in any spelling that `plain` equates; None for the folder's own class.
      steps: number of steps.
      guidance: of the recipe.

    Raises:
      UserError: an unknown name, or settings that no sampler here has.
    """
    own = _own(settings)
    class_name, implied = settings.get("_class_name", "DDPMScheduler"), {}
    if name is not None:
        expect(plain(name) in NAMES, "sampler", name, _listed(NAMES), "choose one of these")
        class_name, implied = NAMES[plain(name)]
    expect(class_name in CLASSES, "_class_name", class_name, _listed(CLASSES), "name a sampler")
    cls = CLASSES[class_name]
    theirs = {**_settings(cls, settings), **implied}
    _check(cls, theirs, own, class_name)
    sampled = VariancePreserving(_table(theirs, cls, linear=cls.linear(theirs)))
    different = sampled if sampled != process(settings) else None
    return Recipe(guidance=guidance, steps=steps, process=different, **cls.recipe(theirs))


def recipes(settings: Settings, steps: int = 50, guidance: Guidance = OFF) -> dict[str, Recipe]:
    """The recipes of all `NAMES` that the settings allow, by name; for `Experiment.recipes`.

    Those of `FEW_STEPS` are presets, with steps of their own and no guidance.
    """
    found = {}
    for name in NAMES:
        few = name in FEW_STEPS
        own = (FEW_STEPS[name], OFF) if few else (steps, guidance)
        try:
            made = recipe(settings, name, *own)
        except UserError:
            continue
        found[name] = Preset(**{field: getattr(made, field) for field in _RECIPE}) if few else made
    return found


def distilled(settings: Settings) -> int | None:
    """The number of steps of a scheduler that is made for distilled models, such as LCM's; None of other classes."""
    names = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}
    name = names.get(settings.get("_class_name", ""))
    return None if name is None else FEW_STEPS[name]


def handover(fraction: float, train_steps: int = 1000) -> float:
    """The time of ``denoising_end=fraction`` and ``denoising_start=fraction`` in diffusers.

    It is `Recipe.until` of the model that begins and `Recipe.below` of the one that continues (SDXL's refiner; Podell
    et al. 2023, section 2.5).

    Args:
      fraction: of the model's steps, counted from noise, in (0, 1).
      train_steps: T, number of steps of the models.
    """
    expect(0 < fraction < 1, "fraction", fraction, "a number in (0, 1)", "try 0.8")
    return (round(train_steps - fraction * train_steps) + 1) / train_steps


def _own(settings: Settings) -> dict[str, Any]:
    """All settings of the folder's class; of an unknown class, the settings common to all classes."""
    check(settings, FIELDS, "scheduler_config.json")
    name = settings.get("_class_name", "DDPMScheduler")
    fix = "use a model with a scheduler of betas"
    has_betas = name in CLASSES or "beta_schedule" in settings or "trained_betas" in settings
    expect(has_betas, "_class_name", name, "a scheduler with betas", fix)
    unknown = SchedulerClass(GENERAL | {"rescale_betas_zero_snr": False}, {}, dict)
    return _settings(CLASSES.get(name, unknown), settings)


def _settings(cls: SchedulerClass, settings: Settings) -> dict[str, Any]:
    """The settings of a class, by the rules of ``from_config``."""
    unset = settings.get("_use_default_values", ())
    return {
        field: settings[field] if field in settings and field not in unset else default
        for field, default in cls.defaults.items()
    }


def _check(cls: SchedulerClass, theirs: Settings, own: Settings, class_name: str) -> None:
    """Raise `UserError` about the first setting that has no equivalent."""
    for field, known in cls.known.items():
        value = tuple(theirs[field]) if isinstance(theirs[field], list) else theirs[field]
        expect(value in known, field, value, " or ".join(map(repr, known)), "choose another sampler")
    rescaled = own.get("rescale_betas_zero_snr", False)
    expect(
        not rescaled or "rescale_betas_zero_snr" in theirs, "rescale_betas_zero_snr", rescaled,
        f"False with {class_name}, which does not rescale", "choose another sampler",
    )  # fmt: skip


def _table(settings: Settings, cls: SchedulerClass | None = None, linear: str = "log_snr") -> Table:
    """The schedule: the model's, or that of a class which samples it."""
    zero = bool(settings.get("rescale_betas_zero_snr", False))
    last = LAST_ALPHA_SQUARED if zero and cls is not None and cls.divides_by_alpha else 0.0
    betas = _betas(settings)
    # Only these betas are so large, and so small, that rounding shows.
    rounded = isinstance(betas, CosineBetas) and not zero
    return Table(betas, zero, last, linear, rounded)


def _betas(settings: Settings) -> BetaSequence:
    if settings["trained_betas"] is not None:
        return Betas(tuple(map(float, settings["trained_betas"])))
    kind, steps = settings["beta_schedule"], settings["num_train_timesteps"]
    if kind == "squaredcos_cap_v2":
        return CosineBetas(steps)
    known = _listed([*SCHEDULES, "squaredcos_cap_v2"])
    expect(kind in SCHEDULES, "beta_schedule", kind, known, "use such a scheduler")
    return SCHEDULES[kind](settings["beta_start"], settings["beta_end"], steps)


def _listed(names: Any) -> str:
    return f"one of {', '.join(names)}"
