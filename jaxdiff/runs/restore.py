"""Parameters restored from a run's folder."""

from collections.abc import Callable
from typing import Literal

import jax
from etils import epath

from jaxdiff.errors import UserError, expect
from jaxdiff.experiment import Experiment
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.state import abstract_params
from jaxdiff.training.step import TrainState
from jaxdiff.trees import merge
from jaxdiff.typing import Params

UNTRAINED = "untrained"
"""The folder of the parameters that a run does not train: written once, in the format of a checkpoint."""


def restore_params(
    experiment: Experiment,
    workdir: str,
    mesh: jax.sharding.Mesh,
    step: int | None = None,
    field: Literal["ema", "params"] = "ema",
    flag: str = "--workdir",
) -> Params:
    """The EMA of a checkpoint (or the parameters of its last step) on `mesh`, with the parameters that are not trained.

    Args:
      experiment: the run's, from its config.
      step: of the checkpoint; the latest if None.
      flag: where the folder was given, for errors.
    """
    field = "params" if experiment.ema.count == 0 else field
    untrained = experiment.optimizer.frozen
    folder = epath.Path(workdir).expanduser()
    stored = has_untrained(folder)
    # Runs of jaxdiff 0.1.0 have every parameter in each checkpoint.
    trained, _ = abstract_params(experiment.task, mesh, untrained if stored else ())
    if not jax.tree.leaves(trained):  # all parameters are of frozen networks, and no checkpoint holds any
        expected, fix = "a run with checkpoints", "leave out the step: the run has one set of weights"
        expect(step is None, flag, f"{workdir}:{step}", expected, fix, "one that was converted, without any")
        return {}
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        params = _newest_or(step, checkpoints, lambda found: checkpoints.restore_part(found, field, trained))
    if params is None:
        raise UserError(f"{flag}={workdir}: expected a checkpoint, got none yet. Fix: train first")
    return merge(params, restore_untrained(experiment, folder, mesh)) if stored else params


def _newest_or(step: int | None, checkpoints: Checkpoints, read: Callable[[int], Params]) -> Params | None:
    """What `read` returns for a step, or for the newest intact checkpoint if None; None without any checkpoint."""
    if step is None:
        found = checkpoints.newest(read)
        return None if found is None else found[1]
    checkpoints.verify(step)
    return read(step)


def has_untrained(workdir: epath.Path) -> bool:
    """Whether the folder holds a complete copy of the parameters that its run does not train."""
    with Checkpoints(workdir / UNTRAINED, read_only=True) as checkpoints:
        return checkpoints.latest() is not None


def restore_untrained(experiment: Experiment, workdir: epath.Path, mesh: jax.sharding.Mesh) -> Params:
    """The parameters that the run in `workdir` does not train."""
    _, abstract = abstract_params(experiment.task, mesh, experiment.optimizer.frozen)
    with Checkpoints(workdir / UNTRAINED, read_only=True) as checkpoints:
        checkpoints.verify(0)
        return checkpoints.restore_part(0, "params", abstract)


def save_untrained(params: Params, workdir: epath.Path) -> None:
    """Store the parameters that a run does not train, once."""
    with Checkpoints(workdir / UNTRAINED) as checkpoints:
        checkpoints.save(0, TrainState(0, params=params, ema=(), opt_state=()))
        checkpoints.wait()
