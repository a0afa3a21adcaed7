"""Judge a trained model: how good its samples are, how diverse, and what it memorised.

    python -m jaxdiff.evaluate --workdir runs/digits

writes evaluation.json and evaluation.png into the run's folder and prints a table.
"""

from collections.abc import Sequence

from jaxdiff.cli import app as command
from jaxdiff.errors import UserError

DESCRIPTION = (
    "Judge a trained model on held-out data: writes evaluation.json and evaluation.png into the workdir."
)


def parser() -> command.Parser:
    flags = command.Parser(
        description=DESCRIPTION, epilog="--config.evaluation.n=500 and the like change the stored config."
    )
    flags.add_argument("--workdir", required=True, help="folder of the training run")
    flags.add_argument("--step", type=int, default=None, help="which checkpoint (default: the newest)")
    flags.add_argument(
        "--guide", default=None, metavar="FOLDER[:STEP]", help="a weaker model's run, for Autoguidance"
    )
    flags.add_argument(
        "--packages", default="", help="comma-separated packages that the stored config may use"
    )
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)

    from jaxdiff import config as configs
    from jaxdiff.config.overrides import override
    from jaxdiff.distributed import runtime
    from jaxdiff.runs.workdir import read_config

    config = read_config(flags.workdir)
    packages = ("jaxdiff", *(name for name in flags.packages.split(",") if name))
    for path, text in overrides:
        override(config, path, text, packages=packages)
    experiment = configs.build(config, packages=packages)
    if experiment.evaluation is None:
        raise UserError(
            "config.evaluation=None: the run has no evaluation. Fix: pass --config.evaluation=module:Class"
        )
    runtime.start()

    from jaxdiff.generation.generator import Generator

    guide = None if flags.guide is None else command.run_and_step(flags.guide)
    generator = Generator.load(
        flags.workdir, step=flags.step, overrides=overrides, packages=packages[1:], guide=guide
    )
    generator.check()
    print(evaluate(experiment, generator, flags.workdir))


def evaluate(experiment, generator, workdir: str) -> str:
    """Run the experiment's evaluation, write its report into `workdir` and return it as a table."""
    import functools

    import jax

    from jaxdiff.evaluation import denoising_loss as held_out
    from jaxdiff.evaluation.protocols import EvaluationInputs
    from jaxdiff.evaluation.reports import files as report

    task, recipe, mesh, params = experiment.task, experiment.sampling, generator.mesh, generator.params
    conditioner = task.denoiser.conditioner
    train, test = experiment.data.all(), experiment.test_data.all()
    scale = float(recipe.guidance.scale)

    def generate(conditions, seed, guidance):
        return generator(**conditions, seed=seed, guidance=None if guidance == scale else guidance)

    found = experiment.evaluation(
        EvaluationInputs(
            generate=generate,
            conditions=tuple(name for name in conditioner.conditions if not conditioner.has_default(name)),
            guidance=scale,
            train=train,
            test=test,
            settings={
                "sampler": repr(recipe.sampler),
                "grid": repr(recipe.grid),
                "steps": recipe.steps,
                "data": {
                    "train": experiment.data.source.fingerprint(),
                    "test": experiment.test_data.source.fingerprint(),
                },
            },
            noise_losses={
                "log_snr": held_out.LOG_SNRS,
                "train": held_out.errors(task, params, train, mesh),
                "test": held_out.errors(task, params, test, mesh),
            },
            bits=functools.partial(
                held_out.bits, denoiser=task.denoiser, params=params, examples=test, mesh=mesh
            ),
        )
    )
    if jax.process_index() == 0:
        report.write(found, workdir)
    return report.table(found)


if __name__ == "__main__":
    command.run(main)
