"""A model's noise process as a ``scheduler_config.json`` of diffusers: the inverse of `schedulers.process`."""

import dataclasses
from typing import Any

from jaxdiff.errors import UserError
from jaxdiff.interop import schedulers
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import Parameterization
from jaxdiff.process.table import Betas, CosineBetas, Table


def of(process: Any, parameterization: Parameterization) -> dict[str, Any]:
    """The settings of a DDIM scheduler that samples a model with this process.

    Raises:
      UserError: diffusers has no scheduler with such a process or parameterization.
    """
    schedule = process.schedule if isinstance(process, VariancePreserving) else None
    kinds = {cls: name for name, cls in schedulers.PREDICTIONS.items()}
    if isinstance(schedule, Table) and type(parameterization) in kinds:
        found = {
            "_class_name": "DDIMScheduler", **_betas(schedule), "prediction_type": kinds[type(parameterization)],
            "rescale_betas_zero_snr": schedule.zero_terminal_snr, "set_alpha_to_one": False, "steps_offset": 1,
            "clip_sample": False,
        }  # fmt: skip
        found_schedule: Any = schedulers.process(found).schedule
        rounded = dataclasses.replace(schedule, rounded=found_schedule.rounded)
        same = found_schedule == rounded, schedulers.parameterization(found) == parameterization
        if all(same):
            return found
    raise UserError(
        f"--to: expected a process that a scheduler of diffusers has, got {type(schedule or process).__name__} with "
        f"{type(parameterization).__name__}. Fix: keep the workdir as it is"
    )


def _betas(schedule: Table) -> dict[str, Any]:
    betas: Any = schedule.betas
    if isinstance(betas, Betas):
        return {"trained_betas": list(betas.values), "num_train_timesteps": len(betas.values)}
    if isinstance(betas, CosineBetas):
        return {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": betas.steps}
    names = {cls: name for name, cls in schedulers.SCHEDULES.items()}
    return {
        "beta_schedule": names.get(type(betas), type(betas).__name__), "beta_start": betas.first,
        "beta_end": betas.last, "num_train_timesteps": betas.steps,
    }  # fmt: skip
