"""Train a model; the same command again continues an interrupted run.

python -m jaxdiff.train --config configs/digits.py
python -m jaxdiff.train --config configs/digits.py --workdir runs/wide --config.optimizer.learning_rate=3e-4
python -m jaxdiff.train --config configs/digits.py --workdir runs/tuned --from-workdir runs/digits
"""

import pathlib
import signal
from collections.abc import Sequence

from jaxdiff.cli import app as command

DESCRIPTION = "Train a model; the same command again continues an interrupted run."
EPILOG = """\
--config.PATH=VALUE changes any field of the config, --config.sampling.steps=20 for example.
exit status: 0 finished, 2 a mistake in what was asked, 75 stopped by SIGTERM with all saved, 130 the same by Ctrl-C."""


def parser() -> command.Parser:
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--config", help="a config file, configs/x.py or configs/x.py:variant")
    flags.add_argument("--workdir", help="where the run lives (default: runs/NAME_OF_CONFIG)")
    flags.add_argument(
        "--from-workdir", default=None, metavar="FOLDER[:STEP]", help="start from the parameters of this run"
    )
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    config = command.load_config(flags.config, [*start(flags.from_workdir), *overrides])

    from jaxdiff import config as configs
    from jaxdiff.runs.workdir import init_workdir

    experiment = configs.build(config)
    name = pathlib.Path(flags.config.partition(":")[0]).stem
    variant = flags.config.partition(":")[2]
    workdir = init_workdir(config, flags.workdir or f"runs/{name}{'_' + variant if variant else ''}")

    from jaxdiff.distributed import runtime

    runtime.start()
    train(experiment, workdir)


def start(folder: str | None) -> list[tuple[str, str]]:
    """The override that lets a run start from another one, whose folder and perhaps step are given."""
    if folder is None:
        return []
    run = command.run_and_step(folder)
    workdir, step = run if isinstance(run, tuple) else (run, None)
    return [("init_from", f"jaxdiff.training.finetune:InitFrom(workdir={workdir!r}, step={step})")]


def train(experiment, workdir) -> None:
    """Train `experiment` to its end in `workdir`, then judge it if it says how."""
    import jax

    from jaxdiff.evaluate import evaluate
    from jaxdiff.generation import preview as sample_grid
    from jaxdiff.generation.generator import Generator
    from jaxdiff.runs import init_from as starting
    from jaxdiff.training import loop

    mesh = experiment.mesh.make()
    experiment.check(mesh.devices.size)
    Generator.of(experiment, None, mesh).check()

    given = None
    if experiment.sample_every:  # looked for now: what is missing is told before the training, not in it
        conditioner = experiment.task.denoiser.conditioner
        given = sample_grid.conditions(conditioner, experiment.data, experiment.test_data, experiment.seed)

    def draw_samples(state, step: int) -> dict:
        """A picture of what the averaged model makes."""
        return {"samples": sample_grid.sample_grid(Generator.of(experiment, state.ema, mesh), given)}

    starting.prepare(experiment, workdir, mesh)

    def batches(first_step: int):
        return experiment.data.batches(
            experiment.batch_size, experiment.seed, first_step, jax.process_index(), jax.process_count()
        )

    try:
        state = loop.run(
            experiment.task,
            batches,
            experiment,
            optimizer=experiment.optimizer.make(experiment.steps),
            ema=experiment.ema,
            mesh=mesh,
            workdir=workdir,
            hooks=[loop.Hook(experiment.sample_every, draw_samples)] if experiment.sample_every else [],
        )
    except loop.Stopped as stop:
        code = 130 if stop.signal_number == signal.SIGINT else 75
        raise command.Interrupted(code, f"{stop}; run the same command to go on") from None
    if experiment.evaluation is not None:
        table = evaluate(experiment, Generator.of(experiment, state.ema, mesh), workdir)
        if jax.process_index() == 0:
            print(table)


if __name__ == "__main__":
    command.run(main)
