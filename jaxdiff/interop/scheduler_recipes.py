"""How the scheduler classes of diffusers sample: from all settings of one to the fields of a `Recipe`.

The fields `steps`, `guidance` and `process` are left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.errors import expect
from jaxdiff.process.labels import RoundedIndex
from jaxdiff.sampling.grids.continuous import KarrasBetween
from jaxdiff.sampling.grids.discrete import Leading, Linspace, Skipping, Trailing
from jaxdiff.sampling.modifiers.rounded_end import RoundedEnd
from jaxdiff.sampling.modifiers.thresholding import StaticThreshold
from jaxdiff.sampling.protocols import Grid, Modifier, Sampler
from jaxdiff.sampling.samplers.adams import Deis
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.consistency import Consistency, TrajectoryConsistency
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver1, DpmSolver2M, DpmSolver3M
from jaxdiff.sampling.samplers.pndm import Plms, Pndm
from jaxdiff.sampling.samplers.unipc import UniPc

Settings = Mapping[str, Any]
"""Fields of a ``scheduler_config.json``."""

LOWER_ORDER_BELOW = 15
"""Steps, of DPM-Solver and DEIS."""


def ddim(settings: Settings) -> dict[str, Any]:
    steps = settings["num_train_timesteps"]
    return {
        "sampler": Ddim(),
        "grid": _grid(settings),
        "modifiers": _clipping(settings, keep_noise=True),
        "t_end": None if settings["set_alpha_to_one"] else 1 / steps,
        # The spacing "leading" has the length of these steps anyway.
        "fixed_stride": None if settings["timestep_spacing"] == "leading" else steps,
        "initial": "unit",
    }


def ddpm(settings: Settings) -> dict[str, Any]:
    kind = settings["variance_type"]
    variance = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large"}.get(
        kind, "learned"
    )
    # A step to clean data adds the larger noise there, unless it begins at the model's first step.
    spacing, offset = settings["timestep_spacing"], settings["steps_offset"]
    from_first = spacing == "linspace" or (spacing == "leading" and offset == 0)
    expect(variance == "small" or from_first, "variance_type", kind,
           "'fixed_small' with steps that end above the model's first", "choose another sampler")  # fmt: skip
    return {
        "sampler": Ancestral(variance),
        "grid": _grid(settings),
        "modifiers": _clipping(settings),
        "initial": "unit",
    }


def lcm(settings: Settings) -> dict[str, Any]:
    """The factors of LCM's boundary condition are left out: they change a sample by less than one part in 100,000."""
    return {
        "sampler": Consistency(),
        "grid": Skipping(settings["num_train_timesteps"], settings["original_inference_steps"]),
        "modifiers": _clipping(settings),
        "initial": "unit",
    }


def tcd(settings: Settings) -> dict[str, Any]:
    """The same steps; the class does not clip."""
    steps = settings["num_train_timesteps"]
    sampler = TrajectoryConsistency(train_steps=steps)
    return lcm(settings) | {"sampler": sampler, "modifiers": (), "t_end": 1 / steps}


def unclip(settings: Settings) -> dict[str, Any]:
    """DDPM between the visited steps of all of the model's, from the noisiest to the first."""
    return {
        "sampler": Ancestral("learned" if settings["variance_type"] == "learned_range" else "small"),
        "grid": Linspace(settings["num_train_timesteps"]),
        "modifiers": (*_clipping(settings), RoundedEnd()),
        "initial": "unit",
    }


def pndm(settings: Settings) -> dict[str, Any]:
    integrand = "v" if settings["prediction_type"] == "v_prediction" else "noise"
    return {
        "sampler": (Plms if settings["skip_prk_steps"] else Pndm)(integrand),
        "grid": _grid(settings),
        "t_end": 0.0 if settings["set_alpha_to_one"] else 1 / settings["num_train_timesteps"],
        "initial": "unit",
    }


def in_sigma(sampler: Sampler, t_end: float | None = None) -> Callable[[Settings], dict[str, Any]]:
    """The classes of k-diffusion's samplers, which scale their data to alpha = 1."""

    def found(settings: Settings) -> dict[str, Any]:
        grid = _grid(settings, rounded=False)
        return {
            "sampler": sampler,
            "grid": KarrasBetween(grid) if settings.get("use_karras_sigmas") else grid,
            "modifiers": _clipping(settings),
            "t_end": t_end,
            "initial": "unit" if settings["timestep_spacing"] == "leading" else "process",
        }

    return found


def dpm_solver(settings: Settings) -> dict[str, Any]:
    kind, order, rule = settings["algorithm_type"], settings["solver_order"], settings["solver_type"]
    final = settings["final_sigmas_type"]
    integrand, eta = ("noise" if kind.endswith("dpmsolver") else "x_0"), float(kind.startswith("sde"))
    expect(integrand == "x_0" or final == "sigma_min", "final_sigmas_type", final,
           f"'sigma_min' with algorithm_type={kind!r}", "choose another sampler")  # fmt: skip
    expect(eta == 0 or order < 3, "solver_order", order, "1 or 2 with noise", "choose another sampler")
    rule = rule if rule == "heun" else "midpoint"
    samplers = {
        1: DpmSolver1(eta, integrand),
        2: DpmSolver2M(eta, integrand, rule),
        3: DpmSolver3M(eta, integrand, compat=True, rule=rule),
    }
    return {
        "sampler": samplers[order],
        **_multistep(settings),
        "lower_order_below": LOWER_ORDER_BELOW,
        "euler_at_final": settings["euler_at_final"],
        "t_end": _first_step(settings) if final == "sigma_min" else None,
    }


def uni_pc(settings: Settings) -> dict[str, Any]:
    final, lower = settings["final_sigmas_type"], settings["lower_order_final"]
    expect(lower or final == "sigma_min", "lower_order_final", lower,
           "True with final_sigmas_type='zero'", "choose another sampler")  # fmt: skip
    variant = "bh1" if settings["solver_type"] == "bh1" else "bh2"
    t_end = _first_step(settings) if final == "sigma_min" else None
    return {"sampler": UniPc(settings["solver_order"], variant), **_multistep(settings), "t_end": t_end}


def deis(settings: Settings) -> dict[str, Any]:
    return {
        "sampler": Deis(settings["solver_order"]),
        **_multistep(settings),
        "lower_order_below": LOWER_ORDER_BELOW,
        "t_end": _first_step(settings),
    }


def _multistep(settings: Settings) -> dict[str, Any]:
    """What the multistep solvers of the DPM-Solver family share."""
    fields = {
        "grid": _grid(settings, drop_last=True),
        "modifiers": _clipping(settings),
        "lower_order_final": settings["lower_order_final"],
        "initial": "unit",
    }
    if not settings["use_karras_sigmas"]:
        return fields
    kind = settings["beta_schedule"]
    expect(kind != "squaredcos_cap_v2", "use_karras_sigmas", True, f"False with beta_schedule={kind!r}",
           "choose another sampler")  # fmt: skip
    steps = settings["num_train_timesteps"]
    # From the model's noisiest step to its first, whatever the spacing. The network is shown the nearest step.
    return fields | {"grid": KarrasBetween(Linspace(steps)), "noise_label": RoundedIndex(steps)}


def _grid(settings: Settings, drop_last: bool = False, rounded: bool = True) -> Grid:
    spacing, steps = settings["timestep_spacing"], settings["num_train_timesteps"]
    spacings = {
        "leading": Leading(steps, settings["steps_offset"], drop_last),
        "linspace": Linspace(steps, drop_last=drop_last, rounded=rounded),
        "trailing": Trailing(steps),
    }
    known = f"one of {', '.join(spacings)}"
    expect(spacing in spacings, "timestep_spacing", spacing, known, "choose one of these")
    return spacings[spacing]


def _clipping(settings: Settings, keep_noise: bool = False) -> tuple[Modifier, ...]:
    """Clipping of the predicted x_0. Thresholding whose largest value is 1 is no more than that."""
    if settings.get("thresholding", False):
        most = settings["sample_max_value"]
        expect(most == 1, "sample_max_value", most, "1 with thresholding", "choose another sampler")
        return (StaticThreshold(1.0, keep_noise),)
    if settings.get("clip_sample", False):
        return (StaticThreshold(float(settings["clip_sample_range"]), keep_noise),)
    return ()


def _first_step(settings: Settings) -> float:
    """The time of the model's first step, where a sampler with this end leaves the noise of that level."""
    karras = settings["use_karras_sigmas"]
    expect(
        not karras,
        "use_karras_sigmas",
        karras,
        "False with a last step to the model's first",
        "choose another sampler",
    )
    return 1 / settings["num_train_timesteps"]
