"""Learn the times of a few sampling steps, so that their samples are near those of many steps.

python -m jaxdiff.learn_grid --workdir runs/digits --steps 5 --name five
python -m jaxdiff.sample --workdir runs/digits --sampler five --label 3 --n 8 --out threes
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxdiff.cli import app as command
from jaxdiff.cli import checkpoints
from jaxdiff.errors import RunFailure, expect

if TYPE_CHECKING:
    import numpy as np

    from jaxdiff.experiment import Experiment
    from jaxdiff.generation.grid_learning import ConditionsOf, LearnedGrid
    from jaxdiff.generation.model import SampledModel

DESCRIPTION = "Learn the times of a few sampling steps, so that their samples are near those of many steps."
EPILOG = """\
Samples of many steps are taken for exact. The times of few steps of the same sampler, with the same guidance and from
the same noise, are fitted to them by gradient descent; the model is not trained. The result is a recipe in the run's
config. --config.PATH=VALUE changes any field of the stored config."""

SAMPLES_OF_A_BATCH = 32
COUNTS = {
    "steps": (5, 2, "number of sampling steps"),
    "exact_steps": (100, 3, "steps of the samples that are taken for exact"),
    "n": (128, 1, "samples to learn from; as many again measure the error"),
    "iterations": (200, 1, "iterations of gradient descent"),
}
"""Flags that are whole numbers: default, least value, help."""


def parser() -> command.Parser:
    """The flags of the command."""
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--workdir", required=True, help="folder of the training run")
    checkpoints.add_step(flags)
    flags.add_argument("--name", required=True, help="of the recipe, for sample --sampler NAME")
    for name, (default, _, text) in COUNTS.items():
        flag = f"--{name.replace('_', '-')}"
        flags.add_argument(flag, type=int, default=default, help=f"{text} (default: {default})")
    flags.add_argument("--sampler", default=None, help="as of jaxdiff.sample (default: the run's)")
    flags.add_argument(
        "--guidance", type=command.number, default=None, help="guidance scale (default: the run's)"
    )
    flags.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    flags.add_argument(
        "--packages", default="", help="comma-separated packages that the stored config may use"
    )
    flags.add_no_verify()
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    for name, (_, least, _) in COUNTS.items():
        flag, value = f"--{name.replace('_', '-')}", getattr(flags, name)
        expect(value >= least, flag, value, f"a whole number >= {least}", "give such a number")
    expect(0 <= flags.seed < 2**32, "--seed", flags.seed, "a 32-bit whole number", "give 0 to 4294967295")

    from jaxdiff.runs.stages import read_model_config
    from jaxdiff.sweeps import presets

    read_model_config(flags.workdir)
    presets.check_name(flags.name, flags.workdir, "--name")
    presets.check_overrides([path for path, _ in overrides], "--name", flags.name)
    step = checkpoints.step_of(flags.step, flags.workdir)

    from jaxdiff.distributed import runtime

    runtime.start()

    import jax

    fix = "start one, which uses all of its devices"
    expect(jax.process_count() == 1, "processes", jax.process_count(), "one process", fix)
    packages = tuple(name for name in flags.packages.split(",") if name)
    _learn(flags, step, overrides, packages)


def _learn(
    flags: argparse.Namespace,
    step: int | None,
    overrides: Sequence[tuple[str, str]],
    packages: tuple[str, ...],
) -> None:
    """Learn, report, and write the recipe."""
    from jaxdiff.generation.generator import Generator
    from jaxdiff.generation.grid_learning import GridLearner
    from jaxdiff.sweeps import loading, presets

    request = loading.Request(flags.workdir, step, tuple(overrides), packages)
    experiment = request.experiment()
    fix = "name held-out data, such as --config.test_data.source.split=test"
    expect(experiment.test_data is not None, "test_data", None, "examples whose conditions are sampled", fix)
    experiment.check_data()

    def load(with_weights: bool) -> GridLearner:
        generator = Generator.load(
            flags.workdir, step=step, overrides=overrides, packages=packages, sampler=flags.sampler,
            with_weights=with_weights,
        )  # fmt: skip
        if flags.guidance is not None:
            rule = generator.recipe.guidance.with_scale(flags.guidance)
            generator = dataclasses.replace(
                generator, recipe=dataclasses.replace(generator.recipe, guidance=rule)
            )
        return GridLearner.of(
            generator, batch_size=SAMPLES_OF_A_BATCH, batches=-(-flags.n // SAMPLES_OF_A_BATCH),
            exact_steps=flags.exact_steps, iterations=flags.iterations, seed=flags.seed,
        )  # fmt: skip

    outline = load(with_weights=False)
    outline.check()
    outline.check_nulls()
    outline.check_steps(flags.steps)
    learner = load(with_weights=True)

    def report(number: int, error: float) -> None:
        if number % 20 == 0:
            print(f"iteration {number}/{flags.iterations}: error {error**0.5:.4f}", flush=True)

    learned = learner(flags.steps, _conditions(experiment, learner), report)
    print(_in_words(learned, learner.recipe.grid))
    if not learned.error < learned.error_before:
        raise RunFailure(
            f"--iterations={flags.iterations}: expected a grid that is better than the run's, got none. "
            "Fix: give more iterations or samples (--n); nothing was written"
        )
    name = presets.write(presets.block(learned.recipe), flags.name, flags.workdir)
    print(f"wrote the recipe {name} into the run's config; sample it with --sampler {name}")


def _conditions(experiment: "Experiment", model: "SampledModel") -> "ConditionsOf":
    """The conditions of test examples, in turn."""
    conditioner, held_out = model.denoiser.conditioner, experiment.test_data
    assert held_out is not None
    names = [name for name in conditioner.conditions if not conditioner.has_default(name)]
    test = held_out.stored()

    def of(index: "np.ndarray") -> dict[str, Any]:
        fields = test.rows(index % len(test))
        return {name: fields[name] for name in names}

    return of


def _in_words(learned: "LearnedGrid", before: object) -> str:
    levels = ", ".join(f"{level:.3g}" for level in learned.levels)
    return (
        f"{learned.recipe.steps} steps of {learned.recipe.sampler}, guidance {learned.recipe.guidance.scale:g}\n"
        f"root mean squared distance from exact samples: {learned.error_before:.4f} with {before}, "
        f"{learned.error:.4f} learned\nnoise levels sigma / alpha: {levels}"
    )


if __name__ == "__main__":
    command.run(main)
