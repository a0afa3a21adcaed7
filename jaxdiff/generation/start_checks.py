"""Checks of a run before its training: parts that do not fit together, and inputs that are needed later."""

import logging
from collections.abc import Sequence
from typing import Any

import jax

from jaxdiff.data.sources import Example
from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import UserError, expect
from jaxdiff.evaluation.protocols import Guided
from jaxdiff.evaluation.reports import files
from jaxdiff.experiment import Experiment
from jaxdiff.generation import preview
from jaxdiff.generation.generator import Generator
from jaxdiff.runs.weights import RunWeights
from jaxdiff.tasks import consistency
from jaxdiff.training.state import init_params

_log = logging.getLogger(__name__)


def check_training(experiment: Experiment) -> None:
    """Raise `UserError` where devices, optimizer or runs of frozen networks do not fit the run, or nothing is trained.

    Before its folder is made.
    """
    experiment.check_devices(experiment.mesh.make().devices.size)
    experiment.optimizer.make(experiment.steps)
    _check_retention(experiment)
    for name, origin in experiment.task.frozen.items():
        if isinstance(origin, RunWeights):
            own = name in getattr(experiment.task, "pretrained", ())
            origin.check(f"config.task.{'pretrained' if own else 'frozen'}.{name}")
    frozen = tuple(experiment.task.frozen)
    if frozen:
        trained = jax.eval_shape(lambda: init_params(experiment.task, experiment.seed))
        fix = "name fewer modules there; --from-workdir RUN starts from the weights of a run"
        expect(
            bool(jax.tree.leaves(trained)),
            "config.task.pretrained",
            frozen,
            "parameters to train",
            fix,
            "none",
        )


def _check_retention(experiment: Experiment) -> None:
    """Raise `UserError` where checkpoints are kept by a metric, and nothing is measured during training."""
    best = experiment.keep_also.best if experiment.keep_also else None
    evaluated = experiment.evaluation is not None and experiment.evaluation.every > 0
    fix = "give evaluation.every or held_out_loss, or leave it out"
    measured = evaluated or experiment.held_out_loss is not None
    expect(
        best is None or measured,
        "config.keep_also.best",
        best,
        "numbers measured during training",
        fix,
        "none",
    )


def check_parts(experiment: Experiment, mesh: Any, workdir: Any) -> None:
    """Raise `UserError` where the parts of an experiment do not fit together; before anything is written."""
    experiment.check_data()
    if experiment.sampling is not None:
        sampled = Generator.of(experiment, None, mesh)
        sampled.check()
        _check_nulls(experiment, sampled)
    if isinstance(experiment.task, consistency.Scaled):
        consistency.warn_of_scale(experiment.task, experiment.data.stored)
    if experiment.evaluation is not None:
        in_first(lambda: files.check(workdir))


def preview_conditions(experiment: Experiment) -> Any:
    """The conditions of the samples drawn in training, None without such samples; a missing one raises."""
    if not experiment.sample_every:
        return None
    conditioner = experiment.sampled.denoiser.conditioner
    return preview.conditions(conditioner, experiment.data, experiment.test_data, experiment.seed)


def prototypes(experiment: Experiment) -> Sequence[Example]:
    """An example of each bucket; says what buckets do to the images. Nothing without buckets."""
    if experiment.data.buckets is None:
        return ()
    found = experiment.data.prototypes(experiment.batch_size)
    if jax.process_index() == 0:
        summary, *concerns = experiment.data.notes(experiment.batch_size)
        print(f"{summary}; one program of the step for each shape is compiled first", flush=True)
        for concern in concerns:
            _log.warning(concern)
    return found


def _check_nulls(experiment: Experiment, sampled: Generator) -> None:
    """Raise `UserError` where samples of this run need a null that it does not train; warn if it draws none itself."""
    evaluation = experiment.evaluation
    try:
        sampled.check_nulls(evaluation.guidances if isinstance(evaluation, Guided) else ())
    except UserError as error:
        if experiment.sample_every or evaluation is not None:
            raise
        _log.warning("sampling this run will be refused: %s", error)
