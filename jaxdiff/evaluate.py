"""Evaluate a trained model: quality and diversity of its samples, and memorization.

    python -m jaxdiff.evaluate --workdir runs/digits

Writes evaluation.json and evaluation.png into the run's folder, and prints a table. Two further uses:

    python -m jaxdiff.evaluate --reference data=test --workdir runs/digits --out digits.npz   # reference statistics
    python -m jaxdiff.evaluate --compare runs/digits runs/other                               # two reports, one table
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from jaxdiff.cli import app as command
from jaxdiff.cli import checkpoints, references
from jaxdiff.errors import UserError, expect

if TYPE_CHECKING:
    from jaxdiff.evaluation.protocols import EvaluationInputs, PredictionInputs, Report
    from jaxdiff.experiment import Experiment
    from jaxdiff.generation.generator import Generator
    from jaxdiff.generation.predictor import Predictor

DESCRIPTION = (
    "Evaluate a trained model on held-out data; write evaluation.json and evaluation.png to its folder."
)


def parser() -> command.Parser:
    flags = command.Parser(
        description=DESCRIPTION,
        epilog="--config.PATH=VALUE changes any field of the stored config, --config.evaluation.n=500 for example.",
    )
    flags.add_argument("--workdir", default=None, help="folder of the training run")
    checkpoints.add_step(flags)
    flags.add_argument(
        "--guiding-model",
        "--guide",
        default=None,
        metavar="FOLDER[:STEP]",
        help="run of a weaker model, for Autoguidance",
    )
    flags.add_argument(
        "--packages",
        default="",
        help="packages, separated by commas, whose classes the stored config may use",
    )
    flags.add_no_verify()
    flags.add_argument(
        "--compare",
        nargs=2,
        default=None,
        metavar=("A", "B"),
        help="print two reports (evaluation.json, or folders of runs) as one table, if they are comparable",
    )
    flags.add_argument(
        "--reference",
        default=None,
        metavar="FILE.npz|data=DATA",
        help="statistics for the Frechet distances; with data=train, data=test or data=module:Class(...): write such",
    )
    flags.add_argument(
        "--features", default=None, metavar="module:Class(...)", help="feature space of --reference data=..."
    )
    flags.add_argument(
        "--out",
        default=None,
        metavar="FOLDER|FILE.npz",
        help="folder for the report, by default the run's; or the file that --reference data=... writes",
    )
    flags.add_argument("--overwrite", action="store_true", help="replace an earlier file or report of --out")
    flags.add_argument(
        "--batch-size", type=int, default=256, help="images that --reference data=... reads at once"
    )
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    if flags.compare is not None:
        for name in ("workdir", "reference", "features", "guiding_model", "out"):
            flag, value = f"--{name.replace('_', '-')}", getattr(flags, name)
            expect(value is None, flag, value, "--compare A B without a run", f"leave {flag} out")
        changed = [path for path, _ in overrides]
        expect(not changed, "--config", changed[:1], "--compare A B without a config", "leave it out")

        from jaxdiff.evaluation.reports import comparison

        first, second = flags.compare
        print(comparison.compare(comparison.read(first), comparison.read(second), (first, second)))
        return
    packages = ("jaxdiff", *(name for name in flags.packages.split(",") if name))
    if references.is_request(flags.reference):
        references.make(flags, overrides, packages)
        return
    expect(flags.workdir is not None, "--workdir", "", "the folder of a run", "give --workdir", "none")
    expected = "--reference data=..., to which this flag belongs"
    expect(flags.features is None, "--features", flags.features, expected, "leave it out")
    is_file = flags.out is not None and flags.out.endswith(".npz")
    expect(not is_file, "--out", flags.out, "a folder, or --reference data=... as well", "name a folder")
    _evaluate_run(flags, overrides, packages)


def _evaluate_run(
    flags: argparse.Namespace, overrides: Sequence[tuple[str, str]], packages: tuple[str, ...]
) -> None:
    """Evaluate a run, write its report, and print it."""
    from jaxdiff import config as configs
    from jaxdiff.config.overrides import override
    from jaxdiff.evaluation.reports import files
    from jaxdiff.runs.stages import read_model_config

    config = read_model_config(flags.workdir)
    for path, text in overrides:
        override(config, path, text, packages=packages)
    experiment = configs.build(config, packages=packages)
    step = checkpoints.step_of(flags.step, flags.workdir)
    if experiment.evaluation is None:
        raise UserError(
            "config.evaluation=None: expected an evaluation, got none. "
            "Fix: pass --config.evaluation=module:Class"
        )
    out = flags.workdir if flags.out is None else files.make(flags.out, flags.overwrite)
    files.check(out)

    from jaxdiff.distributed import runtime

    runtime.start()

    from jaxdiff.evaluation import references as statistics

    if flags.reference is not None:
        evaluation = statistics.with_reference(experiment.evaluation, flags.reference)
        experiment = dataclasses.replace(experiment, evaluation=evaluation)
    statistics.check(experiment.evaluation)
    _with_classes(experiment, flags.workdir).check_data()

    from jaxdiff.evaluation.protocols import Guided, PredictionEvaluator
    from jaxdiff.generation.generator import Generator
    from jaxdiff.generation.predictor import Predictor

    if isinstance(experiment.evaluation, PredictionEvaluator):
        fix = "leave --guiding-model out"
        expect(flags.guiding_model is None, "--guiding-model", flags.guiding_model, "a run with samples", fix)
        predictor = Predictor.load(flags.workdir, step=step, overrides=overrides, packages=packages[1:])
        print(evaluate(experiment, predictor, flags.workdir, out))
        return
    guiding_model = None if flags.guiding_model is None else command.run_and_step(flags.guiding_model)
    generator = Generator.load(
        flags.workdir,
        step=step,
        overrides=overrides,
        packages=packages[1:],
        guiding_model=guiding_model,
    )
    generator.check()
    generator.check_nulls(
        experiment.evaluation.guidances if isinstance(experiment.evaluation, Guided) else ()
    )
    print(evaluate(experiment, generator, flags.workdir, out))


def evaluate(
    experiment: "Experiment",
    model: "Generator | Predictor",
    workdir: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
) -> "Report":
    """Run the experiment's evaluation and write its report.

    Args:
      experiment: an `Experiment` with an evaluation.
      model: the `Generator` of the trained model, or the `Predictor` of a task without samples.
      workdir: the run's folder.
      out: receives ``evaluation.json`` and ``evaluation.png``, which replace earlier ones; `workdir` if None.

    Returns:
      The `Report`, which prints as a table.
    """
    import jax

    from jaxdiff.evaluation.protocols import PredictionEvaluator
    from jaxdiff.evaluation.reports import files

    evaluation = experiment.evaluation
    if evaluation is None:
        raise UserError("config.evaluation=None: expected an evaluation, got none. Fix: give one")
    experiment = _with_classes(experiment, workdir)
    if isinstance(evaluation, PredictionEvaluator):
        report = evaluation.of_predictions(prediction_inputs(experiment, cast("Predictor", model)))
    else:
        report = evaluation(inputs_of(experiment, cast("Generator", model)))
    if jax.process_index() == 0:
        files.write(report, workdir if out is None else out)
    return report


def held_out_loss(experiment: "Experiment", generator: "Generator") -> dict[str, float]:
    """The loss of a trained model on the test data by band of noise, as an experiment with `held_out_loss` logs it."""
    loss, data = experiment.held_out_loss, experiment.test_data
    assert loss is not None  # guaranteed by the caller
    assert data is not None  # guaranteed by an experiment with a held-out loss
    return loss(experiment.sampled, generator.params, data.stored(), generator.mesh, generator.frozen)


def _with_classes(experiment: "Experiment", workdir: str | os.PathLike[str]) -> "Experiment":
    """The experiment with the labels of the run's class table in its data."""
    from jaxdiff.runs import classes

    uses_labels = experiment.uses_labels
    return experiment.with_classes(classes.of_run(workdir, experiment.data)) if uses_labels else experiment


def prediction_inputs(experiment: "Experiment", predictor: "Predictor") -> "PredictionInputs":
    """The `PredictionInputs` of a trained model without samples."""
    from jaxdiff.evaluation.protocols import PredictionInputs

    held_out = experiment.test_data
    assert held_out is not None  # guaranteed by an experiment with an evaluation
    data = {"train": experiment.data.fingerprint(), "test": held_out.fingerprint()}
    return PredictionInputs(predictor, held_out.stored(), predictor.batch_size, {"data": data})


def inputs_of(
    experiment: "Experiment", generator: "Generator", noise_losses: bool = True
) -> "EvaluationInputs":
    """The `EvaluationInputs` of a trained model: its generator, and its data as streams.

    Args:
      noise_losses: whether to measure the losses by noise level, which takes a pass over all examples.
    """
    from jaxdiff.codecs.pixels import Pixels
    from jaxdiff.evaluation import denoising_loss as losses
    from jaxdiff.evaluation.protocols import EvaluationInputs
    from jaxdiff.runs import weights

    task, recipe, mesh, params = experiment.sampled, experiment.recipe, generator.mesh, generator.params
    conditioner = task.denoiser.conditioner
    held_out = experiment.test_data
    assert held_out is not None  # guaranteed by an experiment with an evaluation
    train, test = experiment.data.stored(), held_out.stored()
    scale = float(recipe.guidance.scale)
    conditions = tuple(name for name in conditioner.conditions if not conditioner.has_default(name))

    def generate(given, seed, guidance, first):
        return generator(**given, seed=seed, guidance=None if guidance == scale else guidance, first=first)

    return EvaluationInputs(
        generate=generate,
        conditions=conditions,
        guidance=scale,
        train=train,
        test=test,
        label=conditioner.only("label"),
        batch_size=generator.batch_size,
        settings={
            "sampler": repr(recipe.sampler),
            "grid": repr(recipe.grid),
            "steps": recipe.steps,
            "nfe": recipe.calls(recipe.process or task.denoiser.process_of(params)),
            "guidance_rule": repr(recipe.guidance),
            "reuse": repr(recipe.reuse),
            "dtype": str(getattr(task.denoiser.network, "dtype", "float32")),
            "weights": weights.digest_on_mesh(params),
            "data": {
                "train": experiment.data.fingerprint(),
                "test": held_out.fingerprint(),
            },
        },
        noise_losses=None
        if not noise_losses
        else {
            "log_snr": losses.LOG_SNRS,
            "train": losses.denoising_loss(task, params, train, mesh, generator.frozen),
            "test": losses.denoising_loss(task, params, test, mesh, generator.frozen),
        },
        # Bits per dimension are defined for images of 256 levels, not for latents.
        bits=functools.partial(losses.bits, denoiser=task.denoiser, params=params, examples=test, mesh=mesh)
        if type(task.codec) is Pixels
        else None,
    )


if __name__ == "__main__":
    command.run(main)
