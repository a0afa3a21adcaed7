"""The start of a run: step 0 from another run, and everything that is used and not trained."""

import jax
from etils import epath

from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import UserError, expect
from jaxdiff.experiment import Experiment
from jaxdiff.runs import init_from, weights
from jaxdiff.runs.restore import UNTRAINED, has_untrained, restore_untrained, save_untrained
from jaxdiff.runs.workdir import records
from jaxdiff.tasks.protocols import Sampleable
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.state import untrained_params
from jaxdiff.training.step import Frozen
from jaxdiff.typing import Params


def prepare(experiment: Experiment, workdir: epath.PathLike, mesh: jax.sharding.Mesh) -> Frozen:
    """What a run uses and does not train. A run with `init_from` and no checkpoint yet has its step 0 stored.

    Until the first checkpoint nothing binds the folder: records of an earlier start are replaced.

    Raises:
      UserError: a run or file is missing, its parameters do not fit, or the model of a run with `init_from` differs
        from the other run's at step 0.
    """
    folder = epath.Path(workdir).expanduser()
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        started = checkpoints.exist()
    networks = weights.load(experiment.task.frozen, mesh, folder, record=not started)
    if isinstance(experiment.task, Sampleable):
        experiment.task.check_frozen(networks)
    if started:
        return Frozen(networks, _stored(experiment, folder, mesh))
    patterns = experiment.optimizer.frozen
    if experiment.init_from is not None:
        state, untrained = init_from.first_state(experiment, mesh, networks)
        _replace_untrained(untrained, folder)
        with Checkpoints(folder / "checkpoints", experiment.keep, files=records(folder)) as checkpoints:
            fix = "take another step of the run"
            expect(checkpoints.save(0, state), "init_from.workdir", experiment.init_from.workdir,
                   "finite parameters", fix, "NaN or infinite ones")  # fmt: skip
            checkpoints.wait()
    else:
        untrained = untrained_params(experiment.task, mesh, experiment.seed, patterns)
        _replace_untrained(untrained, folder)
    return Frozen(networks, untrained)


def _replace_untrained(params: Params, folder: epath.Path) -> None:
    """Store the parameters that the run does not train in place of those of a start that came to nothing."""
    earlier = folder / UNTRAINED
    in_first(lambda: earlier.rmtree() if earlier.exists() else None)
    if params:
        save_untrained(params, folder)


def _stored(experiment: Experiment, folder: epath.Path, mesh: jax.sharding.Mesh) -> Params:
    """The task's own parameters that a started run does not train."""
    if not experiment.optimizer.frozen:
        return {}
    if not has_untrained(folder):
        raise UserError(
            f"--workdir={folder}: expected a run that keeps untrained parameters apart, got one of jaxdiff 0.1.0. "
            "Fix: start a new run from it, with init_from"
        )
    return restore_untrained(experiment, folder, mesh)
