"""Train a model; the same command again continues an interrupted run.

python -m jaxdiff.train --config configs/digits.py
python -m jaxdiff.train --config configs/digits.py --workdir runs/wide --config.optimizer.learning_rate=3e-4
"""

import pathlib
import signal
from collections.abc import Sequence

from jaxdiff import command

DESCRIPTION = "Train a model; the same command again continues an interrupted run."
EPILOG = """\
--config.PATH=VALUE changes any field of the config, --config.sampling.steps=20 for example.
exit status: 0 finished, 2 a mistake in what was asked, 75 stopped by SIGTERM with all saved, 130 the same by Ctrl-C."""


def parser() -> command.Parser:
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--config", help="a config file, configs/x.py or configs/x.py:variant")
    flags.add_argument("--workdir", help="where the run lives (default: runs/NAME_OF_CONFIG)")
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    config = command.load_config(flags.config, overrides)

    from jaxdiff import config as configs
    from jaxdiff.experiment import claim

    experiment = configs.build(config)
    name = pathlib.Path(flags.config.partition(":")[0]).stem
    variant = flags.config.partition(":")[2]
    workdir = claim(config, flags.workdir or f"runs/{name}{'_' + variant if variant else ''}")

    from jaxdiff.distributed import runtime

    runtime.start()
    train(experiment, workdir)


def train(experiment, workdir) -> None:
    """Train `experiment` to its end in `workdir`, then judge it if it says how."""
    import jax

    from jaxdiff.evaluate import evaluate
    from jaxdiff.generator import Generator
    from jaxdiff.training import loop

    mesh = experiment.mesh.make()
    experiment.check(mesh.devices.size)
    Generator.of(experiment, None, mesh).check()

    def sample_grid(state, step: int) -> dict:
        """A picture of what the averaged model makes."""
        return {"samples": labelled_grid(Generator.of(experiment, state.ema, mesh))}

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
            hooks=[loop.Hook(experiment.sample_every, sample_grid)] if experiment.sample_every else [],
        )
    except loop.Stopped as stop:
        code = 130 if stop.signal_number == signal.SIGINT else 75
        raise command.Interrupted(code, f"{stop}; run the same command to go on") from None
    if experiment.evaluation is not None:
        table = evaluate(experiment, Generator.of(experiment, state.ema, mesh), workdir)
        if jax.process_index() == 0:
            print(table)


def labelled_grid(generator, columns: int = 10):
    """One uint8 picture of samples: for a class-conditional model a row for each class (the first 16), labelled."""
    from jaxdiff.data import images

    label = generator.denoiser.conditioner.parts.get("label")
    if label is None:
        return images.grid(generator(columns * columns), columns)
    rows = min(label.num_classes, 16)
    labels = [row for row in range(rows) for _ in range(columns)]
    return images.grid(generator(label=labels), columns, row_labels=[str(row) for row in range(rows)])


if __name__ == "__main__":
    command.run(main)
