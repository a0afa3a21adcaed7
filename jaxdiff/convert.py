"""Convert published weights into a run's folder for sample, evaluate and train, or a run into a folder of diffusers.

python -m jaxdiff.convert --from 64x64_diffusion.pt --config configs/adm.py:imagenet64 --workdir runs/adm64
python -m jaxdiff.convert --workdir runs/ddpm_cifar10 --to ddpm_cifar10_diffusers
"""

import json
import pathlib
from collections.abc import Sequence

from jaxdiff.cli import app as command
from jaxdiff.errors import UserError

DESCRIPTION = "Convert published weights into a run's folder, or a run into a folder of diffusers."
EPILOG = """\
Files: guided-diffusion's .pt, EDM's and EDM2's .pkl, diffusers' UNet2DModel folders, safetensors. No code from a file
is run. Averaged weights are preferred if a file has them. Nothing is written unless every tensor fits the network."""


def parser() -> command.Parser:
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--from", dest="source", metavar="FILE", help="published weights: a file or a folder")
    flags.add_argument("--config", help="the config of their network, configs/x.py:variant")
    flags.add_argument("--workdir", help="the run's folder: written with --from, read with --to")
    flags.add_argument(
        "--weights", choices=("averaged", "trained"), help="weights to read from a file that has both"
    )
    flags.add_argument(
        "--attention-order",
        choices=("new", "legacy"),
        help="order of guided-diffusion's queries, keys and values (default: as published, new for 64x64 images)",
    )
    flags.add_argument(
        "--to", metavar="FOLDER", help="write the run's averaged weights in the layout of diffusers"
    )
    flags.add_no_verify()
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    if (flags.source is None) == (flags.to is None):
        got = "none of them" if flags.to is None else "both"
        raise UserError(f"--from: expected either --from or --to, got {got}. Fix: see --help")
    if flags.workdir is None:
        raise UserError("--workdir=: expected a run's folder, got none. Fix: give --workdir runs/NAME")
    if flags.to is not None:
        print(write_diffusers(flags.workdir, flags.to))
        return
    config = command.load_config(flags.config, overrides)
    ema = None if flags.weights is None else flags.weights == "averaged"
    print(convert(flags.source, config, flags.workdir, ema, flags.attention_order))


def convert(
    source: str, config, workdir: str, ema: bool | None = None, attention_order: str | None = None
) -> str:
    """Make `workdir` a run of `config` whose checkpoint 0 has the weights of `source`.

    Args:
      source: a file or folder of published weights.
      config: config of the network, an experiment.
      workdir: folder of the run, without checkpoints.
      ema: weights to read, as in `read_tensors`.
      attention_order: order of guided-diffusion's attention, "new" or "legacy"; None for the published one.

    Returns:
      A one-line summary for the user.

    Raises:
      UserError: the file cannot be read, a tensor does not fit the network, or `workdir` has checkpoints.
    """
    import jax

    from jaxdiff import config as configs
    from jaxdiff.interop import edm, families
    from jaxdiff.interop.mapping import to_params
    from jaxdiff.interop.tensors import read_tensors
    from jaxdiff.runs.restore import save_untrained
    from jaxdiff.runs.workdir import init_workdir
    from jaxdiff.training.checkpoint import Checkpoints
    from jaxdiff.training.partition import split
    from jaxdiff.training.state import abstract_params, abstract_state, begin

    experiment = configs.build(config)
    task, mesh = experiment.task, experiment.mesh.make()
    optimizer, extra_emas = experiment.optimizer.make(experiment.steps), len(experiment.ema.extra_emas())
    folder = pathlib.Path(workdir).expanduser() / "checkpoints"
    if folder.exists() and any(folder.iterdir()):
        expected = "expected a folder without checkpoints, got existing ones"
        raise UserError(f"--workdir={workdir}: {expected}. Fix: give another folder")
    checkpoint = read_tensors(source, ema)
    mapping = families.entries(checkpoint.tensors, task.denoiser, task.image_shape[0], attention_order)
    abstract, _ = abstract_params(task, mesh)
    params = to_params(mapping, checkpoint.tensors, abstract, edm.BUFFERS)

    run = init_workdir(config, workdir)
    placed = jax.tree.map(jax.device_put, params, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    patterns = experiment.optimizer.frozen
    trained, untrained = split(placed, patterns)
    state = abstract_state(task, optimizer, mesh, extra_emas, patterns)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    make_state = jax.jit(lambda params: begin(task, optimizer, params, extra_emas), out_shardings=shardings)
    if untrained:
        save_untrained(untrained, run)
    with Checkpoints(run / "checkpoints", experiment.keep) as checkpoints:
        checkpoints.save(0, make_state(trained))
        checkpoints.wait()
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    tree = f" ({checkpoint.tree})" if checkpoint.tree else ""
    return f"wrote {count:,} parameters of {source}{tree} as checkpoint 0 of {run}"


def write_diffusers(workdir: str, folder: str) -> str:
    """Write the averaged weights of a run as a diffusers `UNet2DModel`; returns a one-line summary."""
    from jaxdiff.generation.generator import Generator
    from jaxdiff.interop import diffusers
    from jaxdiff.interop.mapping import to_tensors
    from jaxdiff.interop.safetensors_files import write_safetensors
    from jaxdiff.runs import classes

    generator = Generator.load(workdir)
    config = diffusers.model_config(generator.denoiser, generator.image_shape[0])
    tensors = to_tensors(diffusers.entries(diffusers.network_of(generator.denoiser)), generator.params)
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_safetensors(path / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})
        (path / "config.json").write_text(json.dumps(config, indent=2))
        table = classes.read(workdir)
        if table is not None:
            (path / classes.FILE).write_text(classes.to_json(table))
    except OSError as error:
        raise UserError(
            f"--to={folder}: expected a writable folder, got {error.strerror or error}. Fix: give another folder"
        ) from None
    return f"wrote {len(tensors)} tensors of {workdir} to {folder}"


if __name__ == "__main__":
    command.run(main)
