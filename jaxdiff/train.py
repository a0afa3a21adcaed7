"""Train a model; the same command again continues an interrupted run.

python -m jaxdiff.train --config configs/digits.py
python -m jaxdiff.train --config configs/digits.py --workdir runs/wide --config.optimizer.learning_rate=3e-4
python -m jaxdiff.train --config configs/digits.py --workdir runs/tuned --from-workdir runs/digits

From Python, on arrays in memory::

    from jaxdiff.config import load
    from jaxdiff.data.arrays import Arrays
    from jaxdiff.train import train

    generator = train(load("configs/digits.py"), "runs/mine", source=Arrays(image=images, label=labels))
"""

import contextlib
import dataclasses
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxdiff.cli import app, spans
from jaxdiff.cli.stop_signals import StopAtOnce
from jaxdiff.errors import expect

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxdiff.data.pipeline import Pipeline, Source
    from jaxdiff.evaluation.protocols import Report
    from jaxdiff.experiment import Experiment
    from jaxdiff.generation.generator import Generator
    from jaxdiff.generation.predictor import Predictor
    from jaxdiff.training.loop import Hook, Surroundings


DESCRIPTION = "Train a model; the same command again continues an interrupted run."
EPILOG = """\
--config.PATH=VALUE changes any field of the config, --config.sampling.steps=20 for example.
exit status: 0 finished; 1 a failure of disks, files or training; 2 user error; 130 stopped by Ctrl-C and saved;
75 stopped, run the same command again: by SIGTERM, SIGHUP, SIGUSR1 or --time-limit, or as another process is lost."""


def parser() -> app.Parser:
    flags = app.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--config", help="a config file, configs/x.py or configs/x.py:variant")
    flags.add_argument("--workdir", help="folder of the run (default: runs/NAME_OF_CONFIG)")
    flags.add_argument(
        "--from-workdir",
        default=None,
        metavar="FOLDER[:STEP]",
        help="initialise the parameters from this run",
    )
    flags.add_argument(
        "--restart",
        action="store_true",
        help="begin the run anew; its files so far are moved to before_restart in its folder",
    )
    flags.add_argument(
        "--time-limit",
        metavar="DURATION",
        help="save and stop with status 75 before this time has passed: 90m, 1.5h or HH:MM:SS",
    )
    flags.add_argument(
        "--profile",
        metavar="START:STOP",
        help="trace these steps for TensorBoard and Perfetto, in the folder profile of the run",
    )
    flags.add_no_verify()
    return flags


def main(argv: Sequence[str]) -> None:
    with StopAtOnce() as stop:
        _main(argv, time.monotonic(), stop)


def _main(argv: Sequence[str], began: float, stop: StopAtOnce) -> None:
    flags, overrides = parser().parse(argv)
    time_limit = None if flags.time_limit is None else spans.seconds_of(flags.time_limit)
    profile = None if flags.profile is None else spans.steps_of(flags.profile)
    config = app.load_config(flags.config, [*init_from(flags.from_workdir), *overrides])

    from jaxdiff.config import build
    from jaxdiff.config.files import file_and_variant
    from jaxdiff.distributed import runtime
    from jaxdiff.runs.workdir import init_workdir
    from jaxdiff.training.signals import Stopped

    experiment = build(config)
    if profile is not None:
        fix = "choose earlier steps"
        expect(
            profile[1] <= experiment.steps, "--profile", flags.profile, f"steps up to {experiment.steps}", fix
        )
    file, variant = file_and_variant(flags.config)
    name = pathlib.Path(file).stem
    folder = flags.workdir or f"runs/{name}{'_' + variant if variant else ''}"
    new_schedule = any(path == "optimizer.schedule" for path, _ in overrides)
    runtime.start()

    from jaxdiff.distributed.peers import Peers
    from jaxdiff.generation import start_checks
    from jaxdiff.training.loop import Surroundings

    ended = None
    with Peers() as peers:
        start_checks.check_training(experiment)
        around = Surroundings(began, time_limit, profile, stop.steps, peers)
        try:
            with _at_work(folder, flags.restart):
                _train(experiment, init_workdir(config, folder, experiment, new_schedule), around)
        except Stopped as stopped:  # the other processes stop at the same step
            ended = stopped
    if ended is not None:
        code = 130 if ended.signal_number == signal.SIGINT else 75
        raise app.Interrupted(code, f"{ended}; run the same command to go on")


def init_from(folder: str | None) -> list[tuple[str, str]]:
    """The override of `init_from` for another run, given as ``folder`` or ``folder:step``."""
    if folder is None:
        return []
    run = app.run_and_step(folder)
    workdir, step = run if isinstance(run, tuple) else (run, None)
    return [("init_from", f"jaxdiff.training.transfer:InitFrom(workdir={workdir!r}, step={step})")]


def train(
    experiment: "str | ConfigDict | Experiment",
    workdir: str,
    *,
    source: "Source | None" = None,
    test_source: "Source | None" = None,
) -> "Generator | Predictor | None":
    """Train to the end, then evaluate if the experiment has an evaluation.

    The same call again continues an interrupted run exactly.

    Args:
      experiment: a config file, a config as `jaxdiff.config.load` returns it, or an `Experiment`.
      workdir: the run's folder.
      source: training examples instead of the experiment's, such as `Arrays` in memory. Arrays are not stored: the
        run's config keeps their hash, and a run is only continued with the same arrays.
      test_source: held-out examples instead of the experiment's.

    Returns:
      A generator with the EMA of the parameters. For a task without samples a predictor, if it is `Predictive`, or
      else None.

    Raises:
      UserError: the experiment, its data and the devices are inconsistent, or the folder holds another run.
      Stopped: SIGTERM, SIGHUP, SIGUSR1 or SIGINT arrived, and the state is saved.
    """
    from jaxdiff.config import build, describe, load
    from jaxdiff.generation import start_checks
    from jaxdiff.runs.workdir import init_workdir

    if isinstance(experiment, str):
        experiment = load(experiment)
    built: Any = experiment if dataclasses.is_dataclass(experiment) else build(experiment)
    if source is not None:
        built = dataclasses.replace(built, data=dataclasses.replace(built.data, source=source))
    if test_source is not None:
        pipeline = built.test_data or built.data
        built = dataclasses.replace(built, test_data=dataclasses.replace(pipeline, source=test_source))
    start_checks.check_training(built)
    with _at_work(workdir):
        return _train(built, init_workdir(describe(_recorded(built)), workdir, built))


def _recorded(experiment: "Experiment") -> "Experiment":
    """The experiment with records in place of arrays in memory, since configs cannot hold arrays."""
    from jaxdiff.data.arrays import Arrays

    changed = {}
    for name in ("data", "test_data"):
        pipeline = getattr(experiment, name)
        if pipeline is not None and isinstance(pipeline.source, Arrays):
            changed[name] = dataclasses.replace(pipeline, source=pipeline.source.recorded())
    return dataclasses.replace(experiment, **changed)


@contextlib.contextmanager
def _at_work(workdir: str, restart: bool = False) -> Iterator[None]:
    """Hold the lock of a run's folder; with `restart`, its files so far are first moved aside."""
    from jaxdiff.runs.lock import lock
    from jaxdiff.runs.restart import move_aside
    from jaxdiff.runs.workdir import check_not_converted

    check_not_converted(workdir)  # before the lock, which is a file in it
    with lock(workdir):
        if restart and (folder := move_aside(workdir)):
            print(f"the files of the run so far are in {folder}")
        yield


def _train(
    experiment: "Experiment", workdir: Any, around: "Surroundings | None" = None
) -> "Generator | Predictor | None":
    import jax

    from jaxdiff.caching.reading import training_data
    from jaxdiff.cost.held import of_run
    from jaxdiff.data.classes import listed
    from jaxdiff.generation import start_checks
    from jaxdiff.generation.generator import Generator
    from jaxdiff.generation.predictor import Predictor
    from jaxdiff.runs import classes
    from jaxdiff.runs.start import prepare
    from jaxdiff.runs.workdir import records
    from jaxdiff.tasks.protocols import Predictive
    from jaxdiff.training import loop
    from jaxdiff.trees import merge

    table = classes.read(workdir)
    if table is not None and jax.process_index() == 0:
        print(f"classes: {listed(table)}", flush=True)
    experiment = experiment.with_classes(table)
    mesh = experiment.mesh.make()
    start_checks.check_parts(experiment, mesh, workdir)
    conditions = start_checks.preview_conditions(experiment)
    prototypes = start_checks.prototypes(experiment)
    frozen = prepare(experiment, workdir, mesh)
    data = training_data(experiment, workdir)

    def model(state: Any) -> Generator | Predictor | None:
        """The trained model with its EMA; None for a task that neither makes samples nor predicts."""
        params = merge(state.sampled, frozen.params)
        if isinstance(experiment.task, Predictive):
            return Predictor(experiment.task, params, frozen.networks, mesh)
        if experiment.sampling is None:
            return None
        return Generator.of(experiment, params, mesh, frozen.networks, table or ())

    if jax.process_index() == 0:
        print(of_run(experiment, mesh, frozen), flush=True)
    state = loop.run(
        experiment.task,
        _batches(experiment, data),
        experiment,
        optimizer=experiment.optimizer.make(experiment.steps),
        ema=experiment.ema,
        mesh=mesh,
        workdir=workdir,
        frozen=frozen,
        untrained=experiment.optimizer.frozen,
        hooks=_hooks(experiment, workdir, model, conditions),
        files=records(workdir),
        prototypes=prototypes,
        tolerance=experiment.fault_tolerance,
        surroundings=around,
    )
    trained = model(state)
    if trained is not None:
        _evaluate_at_the_end(experiment, trained, workdir)
    return trained


def _hooks(
    experiment: "Experiment", workdir: Any, model: "Callable[[Any], Any]", conditions: Any
) -> "list[Hook]":
    """What happens at intervals in training: samples, the held-out loss, and the evaluation."""
    from jaxdiff.evaluate import evaluate, held_out_loss
    from jaxdiff.generation import preview
    from jaxdiff.training.loop import Hook

    def draw_samples(state: Any, step: int) -> dict:
        """A figure of samples drawn with the EMA."""
        return {"samples": preview.sample_grid(model(state), conditions)}

    def evaluate_during_training(state: Any, step: int) -> dict:
        """Scalars and figure of an evaluation. The last step is evaluated after training."""
        if step == experiment.steps:
            return {}
        return _logged(evaluate(experiment, model(state), workdir))

    def measure_loss(state: Any, step: int) -> dict:
        """The loss on the test data."""
        return held_out_loss(experiment, model(state))

    hooks = [Hook(experiment.sample_every, draw_samples)] if experiment.sample_every else []
    if experiment.held_out_loss is not None:
        hooks.append(Hook(experiment.held_out_loss.every, measure_loss))
    if experiment.evaluation is not None and experiment.evaluation.every:
        hooks.append(Hook(experiment.evaluation.every, evaluate_during_training))
    return hooks


def _batches(experiment: "Experiment", data: "Pipeline") -> "Callable[[int], Iterator[Any]]":
    """This process's rows of the training batches from a step on."""
    import jax

    def batches(first_step: int) -> Iterator[Any]:
        rows = data.batches(
            experiment.batch_size, experiment.seed, first_step, jax.process_index(), jax.process_count()
        )
        return _with_checked_labels(experiment, rows)

    return batches


def _evaluate_at_the_end(experiment: "Experiment", trained: "Generator | Predictor", workdir: Any) -> None:
    """Store and print the report of a trained model, if the experiment has an evaluation; log it as those before."""
    import jax

    from jaxdiff.evaluate import evaluate
    from jaxdiff.training.final_log import log_final

    if experiment.evaluation is None:
        return
    report = evaluate(experiment, trained, workdir)
    if experiment.evaluation.every:
        log_final(workdir, experiment.steps, _logged(report), experiment.keep, experiment.keep_also)
    if jax.process_index() == 0:
        print(report)


def _logged(report: "Report") -> dict[str, Any]:
    """What a log has of an evaluation: its scalars and its figure."""
    return {**report.scalars, "evaluation": report.figure}


def _with_checked_labels(experiment: "Experiment", batches: Any) -> Any:
    """The batches, after a look at class labels: one out of range would become NaN in the network."""
    from jaxdiff.tasks.protocols import Sampleable

    known = experiment.task.denoiser.conditioner.conditions if isinstance(experiment.task, Sampleable) else {}
    labels = {name: condition for name, condition in known.items() if condition.classes is not None}
    for batch in batches:
        for name, condition in labels.items():
            if name in batch:
                condition.check(batch[name], f"config.data.{name}")
        yield batch


if __name__ == "__main__":
    app.run(main)
