"""The start of a run: step 0 from another run, and everything that is used and not trained."""

import jax
from etils import epath

from jaxdiff.errors import UserError
from jaxdiff.experiment import Experiment
from jaxdiff.runs import init_from, weights
from jaxdiff.runs.restore import has_untrained, restore_untrained, save_untrained
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.state import untrained_params
from jaxdiff.training.step import Frozen
from jaxdiff.typing import Params


def prepare(experiment: Experiment, workdir: epath.PathLike, mesh: jax.sharding.Mesh) -> Frozen:
    """What a run uses and does not train. A run with `init_from` and no checkpoint yet has its step 0 stored.

    Raises:
      UserError: a run or file is missing, its parameters do not fit, or the model of a run with `init_from` differs
        from the other run's at step 0.
    """
    folder = epath.Path(workdir).expanduser()
    networks = weights.load(experiment.task.frozen, mesh, folder, record=True)
    if experiment.init_from is None and not experiment.optimizer.frozen:
        return Frozen(networks)
    with Checkpoints(folder / "checkpoints", experiment.keep) as checkpoints:
        started = checkpoints.latest() is not None
        if not started and experiment.init_from is not None:
            state, untrained = init_from.first_state(experiment, mesh, networks)
            if untrained:
                save_untrained(untrained, folder)
            checkpoints.save(0, state)
            checkpoints.wait()
    return Frozen(networks, _untrained(experiment, folder, mesh, started))


def _untrained(experiment: Experiment, folder: epath.Path, mesh: jax.sharding.Mesh, started: bool) -> Params:
    """The task's own parameters that are not trained, which the folder keeps from the first start on."""
    patterns = experiment.optimizer.frozen
    if not patterns:
        return {}
    if not has_untrained(folder):
        if started:
            raise UserError(
                f"--workdir={folder}: expected a run that keeps untrained parameters apart, got one of jaxdiff 0.1.0. "
                "Fix: start a new run from it, with init_from"
            )
        save_untrained(untrained_params(experiment.task, mesh, experiment.seed, patterns), folder)
    return restore_untrained(experiment, folder, mesh)
