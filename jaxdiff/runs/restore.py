"""The parameters that a run has learned, out of its folder."""

from typing import Literal

import jax
from etils import epath

from jaxdiff.errors import UserError
from jaxdiff.experiment import Experiment
from jaxdiff.training import step as training_step
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.typing import Params


def parameters_of(
    experiment: Experiment,
    workdir: str,
    mesh: jax.sharding.Mesh,
    step: int | None = None,
    field: Literal["ema", "params"] = "ema",
    flag: str = "--workdir",
) -> Params:
    """The averaged parameters of a checkpoint (or those of its last step), placed on `mesh`.

    Args:
      experiment: the run's, from its config.
      step: which checkpoint; the newest if None.
      flag: where the folder was given, for errors.
    """
    optimizer = experiment.optimizer.make(experiment.steps)
    abstract = training_step.abstract_state(experiment.task, optimizer, mesh)
    with Checkpoints(epath.Path(workdir) / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.latest() if step is None else step
        if found is None:
            raise UserError(f"{flag}={workdir}: there is no checkpoint yet. Fix: train first")
        return checkpoints.restore_part(found, field, getattr(abstract, field))
