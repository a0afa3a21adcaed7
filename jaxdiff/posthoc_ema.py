"""Post-hoc EMA: reconstruct an average of any length from a run's snapshots, as a folder for sampling.

python -m jaxdiff.posthoc_ema --workdir runs/digits --std 0.08 --out runs/digits-0.08
python -m jaxdiff.sample --workdir runs/digits-0.08 --n 100 --label all --out digits.png
"""

import pathlib
import shutil
from collections.abc import Sequence

from jaxdiff import config as configs
from jaxdiff.cli import app as command
from jaxdiff.cli import output
from jaxdiff.errors import expect

DESCRIPTION = "Reconstruct an average (EMA) of another length from a run with PowerEma(snapshot_every=...)."


def parser() -> command.Parser:
    flags = command.Parser(description=DESCRIPTION)
    flags.add_argument("--workdir", required=True, help="folder of the training run")
    flags.add_argument(
        "--std",
        type=command.number,
        required=True,
        help="length of the average as a fraction of training, such as 0.08",
    )
    flags.add_argument("--out", required=True, help="a new folder, for jaxdiff.sample and jaxdiff.evaluate")
    flags.add_argument(
        "--step", type=int, default=None, help="last step of the average (default: the last snapshot)"
    )
    flags.add_argument(
        "--packages", default="", help="comma-separated packages that the stored config may use"
    )
    flags.add_no_verify()
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    expect(not overrides, "--config", overrides, "no changes of the run's config", "omit them")
    expect(0 < flags.std < 1, "--std", flags.std, "a fraction of training in (0, 1)", "try 0.08")
    out = output.folder("--out", flags.out)
    out.check()

    from jaxdiff.runs.stages import read_model_config
    from jaxdiff.runs.workdir import CONFIG_FILE

    config = read_model_config(flags.workdir)

    from jaxdiff.distributed import runtime

    runtime.start()

    import jax
    import jax.numpy as jnp

    from jaxdiff.runs import classes
    from jaxdiff.runs.restore import UNTRAINED
    from jaxdiff.runs.weights import RECORD
    from jaxdiff.training import snapshots
    from jaxdiff.training.checkpoint import Checkpoints
    from jaxdiff.training.power_ema import PowerEma
    from jaxdiff.training.state import abstract_params
    from jaxdiff.training.step import TrainState
    from jaxdiff.training.storage import is_sound

    packages = [name for name in flags.packages.split(",") if name]
    experiment = configs.build(config, packages=("jaxdiff", *packages))
    kind, fix = type(experiment.ema).__name__, "train with ema=PowerEma(snapshot_every=...)"
    fits = isinstance(experiment.ema, PowerEma)
    expect(fits, "--workdir", flags.workdir, "a run with PowerEma", fix, f"one with {kind}")
    abstract, _ = abstract_params(experiment.task, experiment.mesh.make(), experiment.optimizer.frozen)
    average, step = snapshots.reconstruct(flags.workdir, experiment.ema, abstract, flags.std, flags.step)
    fix = "use other snapshots"
    expect(
        bool(is_sound(average, ())), "--std", flags.std, "a finite average", fix, "NaN or infinite numbers"
    )

    folder = pathlib.Path(flags.workdir).expanduser()

    def fill(draft: pathlib.Path) -> None:
        with Checkpoints(draft / "checkpoints") as checkpoints:
            checkpoints.save(step, TrainState(jnp.int32(step), params=(), ema=average, opt_state=()))
            checkpoints.wait()
        for name in (CONFIG_FILE, RECORD, classes.FILE):
            if (folder / name).exists():
                shutil.copy(folder / name, draft / name)
        if (folder / UNTRAINED).exists():
            shutil.copytree(folder / UNTRAINED, draft / UNTRAINED)

    out.check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(average)))
    out.write(fill)
    print(f"wrote the average of length {flags.std} at step {step} to {flags.out}")


if __name__ == "__main__":
    command.run(main)
