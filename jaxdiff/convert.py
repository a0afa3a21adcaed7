"""Convert published weights into a run's folder, or a run into published files.

python -m jaxdiff.convert --from stable-diffusion-v1-5 --workdir runs/sd15
python -m jaxdiff.convert --from 64x64_diffusion.pt --config configs/adm.py:imagenet64 --workdir runs/adm64
python -m jaxdiff.convert --workdir runs/ddpm_cifar10 --to ddpm_cifar10_diffusers
"""

import json
import pathlib
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxdiff.cli import app as command
from jaxdiff.cli import output
from jaxdiff.errors import UserError, reason

if TYPE_CHECKING:
    from jaxdiff.experiment import Experiment

DIFFUSERS_FILES = ("diffusion_pytorch_model.safetensors", "config.json")
"""The files of a model in the layout of diffusers."""

_OF_A_MODEL = ("lora", "prediction", "tokenizer")
UNUSED = {
    "to": ("config", "base", "weights", "attention_order", *_OF_A_MODEL),
    "config": ("base", *_OF_A_MODEL),
    "base": ("attention_order", *_OF_A_MODEL),
    "source": ("attention_order",),
}
"""A flag that decides what is converted, the first given one -> flags without effect there."""

DESCRIPTION = "Convert published weights into a run's folder, or a run into a folder of diffusers."
EPILOG = """\
Stable Diffusion: a diffusers folder, or a single file; its config is found from its files.
With --config: guided-diffusion's .pt, EDM's and EDM2's .pkl, diffusers' UNet2DModel folders, safetensors.
No code from a file is run. Averaged weights are preferred if a file has them. A prefix of all names, such as module. or
_orig_mod., is removed. Nothing is written unless every tensor is finite and fits the network."""


def parser() -> command.Parser:
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--from", dest="source", metavar="FILE", help="published weights: a file or a folder")
    flags.add_argument(
        "--config", help="config of the network, configs/x.py:variant; not for Stable Diffusion"
    )
    flags.add_argument("--workdir", help="the run's folder: written with --from, read with --to")
    flags.add_argument(
        "--weights", choices=("averaged", "trained"), help="weights to read from a file that has both"
    )
    flags.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="a folder with vocab.json and merges.txt, instead of the model's own or of CLIP's for a single file",
    )
    flags.add_argument(
        "--base",
        metavar="FOLDER",
        help="a converted run; --from gives its U-Net only, such as a distilled one",
    )
    flags.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="a LoRA file to merge into Stable Diffusion; several are added up",
    )
    flags.add_argument(
        "--prediction",
        choices=("epsilon", "v"),
        help="what the U-Net predicts, where the files do not say it or are wrong",
    )
    flags.add_argument(
        "--attention-order",
        choices=("new", "legacy"),
        help="order of guided-diffusion's queries, keys and values (default: as published, new for 64x64 images)",
    )
    flags.add_argument(
        "--to",
        metavar="FOLDER",
        help="write the run's averaged weights in the layout of diffusers; or, of Stable Diffusion, FILE.safetensors",
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
    _check_flags(flags, overrides)
    if flags.to is not None:
        print(export(flags.workdir, flags.to))
        return
    if not pathlib.Path(flags.source).expanduser().exists():
        raise UserError(
            f"--from={flags.source}: expected a file or folder, got none. Fix: give one that exists"
        )
    if flags.config is None:
        _check_new_workdir(flags.workdir)
    else:
        _check_workdir(flags.workdir)
    ema = None if flags.weights is None else flags.weights == "averaged"
    if flags.config is None:
        from jaxdiff.cli import converting
        from jaxdiff.interop import published, unclip

        source = pathlib.Path(flags.source).expanduser()
        if flags.base is None and unclip.pipeline_of(source) is not None:
            print(converting.unclip(flags, overrides))
            return
        if flags.base is not None or published.is_published(flags.source):
            print(converting.stable_diffusion(flags, overrides, ema))
            return
        got, fix = published.describe(flags.source)
        raise UserError(
            f"--from={flags.source}: expected a whole model of Stable Diffusion, or a --config, got {got}. "
            f"Fix: {fix}"
        )
    config = command.load_config(flags.config, overrides)

    from jaxdiff.distributed import runtime

    runtime.start()
    print(convert(flags.source, config, flags.workdir, ema, flags.attention_order))


def _check_flags(flags: Any, overrides: Sequence[tuple[str, str]]) -> None:
    """Raise `UserError` for a flag that would have no effect."""
    mode = next(name for name in UNUSED if getattr(flags, name) is not None)
    given = [f"--{name.replace('_', '-')}" for name in UNUSED[mode] if getattr(flags, name)]
    if mode in ("to", "base"):
        given += [f"--config.{path}" for path, _ in overrides]
    if given:
        what = "--from without --config" if mode == "source" else f"--{mode}"
        raise UserError(f"{given[0]}=: expected flags that {what} uses, got {given[0]}. Fix: leave it out")


def _check_new_workdir(workdir: str) -> None:
    """Raise `UserError` unless there is no such folder, and it can be made on this machine."""
    from jaxdiff.runs.draft import check_new

    check_new(workdir)
    output.Output(f"--workdir={workdir}", output.place("--workdir", workdir), "", overwrite=True).check()


def _check_workdir(workdir: str) -> None:
    """Raise `UserError` unless a run's folder has no weights, and checkpoints can be written there."""
    from etils import epath

    from jaxdiff.runs.workdir import check_not_converted

    path = epath.Path(workdir).expanduser() / "checkpoints"
    if path.is_dir() and any(path.iterdir()):
        expected = "expected a folder without checkpoints, got existing ones"
        raise UserError(f"--workdir={workdir}: {expected}. Fix: give another folder")
    check_not_converted(workdir)
    if "://" in workdir:
        _check_bucket(workdir, path)
    else:
        place = output.place("--workdir", f"{workdir}/checkpoints")
        output.Output(f"--workdir={workdir}", place, "", overwrite=True).check()


def _check_bucket(workdir: str, folder: Any) -> None:
    """Raise `UserError` unless a bucket takes a trial file, which is removed."""
    try:
        trial = folder / f".trial-{secrets.token_hex(6)}"
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_text("")
        trial.unlink()
    except Exception as error:  # clients of buckets raise errors of their own
        raise UserError(
            f"--workdir={workdir}: expected a place that can be written, got {reason(error)}. Fix: give another place"
        ) from error


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
      UserError: the file cannot be read, a tensor does not fit the network or is not finite, or `workdir` has
        checkpoints or cannot be written.
    """
    import jax

    from jaxdiff import config as configs
    from jaxdiff.interop import edm, families
    from jaxdiff.interop.mapping import to_params
    from jaxdiff.interop.tensors import read_tensors
    from jaxdiff.training.state import abstract_params

    experiment = configs.build(config)
    _check_workdir(workdir)
    task, mesh = experiment.task, experiment.mesh.make()
    checkpoint = read_tensors(source, ema)
    prefix, names = families.unwrapped(checkpoint.tensors)
    mapping = families.entries(names, task.denoiser, task.image_shape[0], attention_order)
    abstract, _ = abstract_params(task, mesh)
    params = to_params(mapping, checkpoint.tensors.renamed(names), abstract, edm.BUFFERS)
    placed = jax.tree.map(jax.device_put, params, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    run = _store(experiment, config, placed, workdir)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    notes = [checkpoint.tree, f"names without {prefix}" if prefix else ""]
    noted = f" ({', '.join(filter(None, notes))})" if any(notes) else ""
    return f"wrote {count:,} parameters of {source}{noted} as checkpoint 0 of {run}"


def _store(experiment: "Experiment", config: Any, params: Any, workdir: str) -> Any:
    """Store parameters as checkpoint 0 of a run, and compare what can be read back; returns the run's folder."""
    import jax
    from etils import epath

    from jaxdiff.runs.lock import lock
    from jaxdiff.runs.restore import restore_params, save_untrained
    from jaxdiff.runs.workdir import init_workdir, records
    from jaxdiff.training.checkpoint import Checkpoints
    from jaxdiff.training.disk import check_space
    from jaxdiff.training.partition import split
    from jaxdiff.training.state import abstract_state, begin

    task, mesh, patterns = experiment.task, experiment.mesh.make(), experiment.optimizer.frozen
    optimizer, extra_emas = experiment.optimizer.make(experiment.steps), len(experiment.ema.extra_emas())
    trained, untrained = split(params, patterns)
    state = abstract_state(task, optimizer, mesh, extra_emas, patterns)
    check_space(epath.Path(workdir).expanduser() / "checkpoints", (state, untrained), 1)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    make_state = jax.jit(lambda params: begin(task, optimizer, params, extra_emas), out_shardings=shardings)
    with lock(workdir):
        run = init_workdir(config, workdir)
        if untrained:
            save_untrained(untrained, run)
        with Checkpoints(run / "checkpoints", experiment.keep, files=records(run)) as checkpoints:
            saved = checkpoints.save(0, make_state(trained))
            checkpoints.wait()
        same = saved and _equal(restore_params(experiment, str(run), mesh), params)
    if not same:
        raise UserError(
            f"--workdir={workdir}: expected to read back the weights that were written, got others. "
            f"Fix: delete {run / 'checkpoints'}, and convert again, to another disk if this recurs"
        )
    return run


def _equal(a: Any, b: Any) -> bool:
    """Whether two trees of finite arrays are equal, bit for bit up to the sign of zero."""
    import jax
    import jax.numpy as jnp

    return all(map(bool, jax.tree.leaves(jax.tree.map(jnp.array_equal, a, b))))


def export(workdir: str, target: str) -> str:
    """Write a run in the layout of diffusers, or a run of latents as a single file; returns a summary for the user."""
    from jaxdiff.runs.stages import is_staged
    from jaxdiff.runs.workdir import read_config

    config = read_config(workdir)
    staged = is_staged(config)
    if not staged and not config.task.get("codec", {}).get("target", "").endswith(":Latent"):
        return write_diffusers(workdir, target)
    single = target.endswith(".safetensors") and not staged
    place = output.file("--to", target) if single else output.folder("--to", target)
    place.check()

    from jaxdiff.distributed import runtime

    runtime.start()

    from jaxdiff.runs import published_export, published_unclip_export

    folder = published_unclip_export.folder if staged else published_export.folder
    made = (published_export.single_file if single else folder)(workdir)
    place.check_space(made.size)
    place.write(made.write)
    kind = "" if single else ", a pipeline of diffusers"
    return f"wrote {made.count} tensors of {workdir} to {place.path}{kind}"


def write_diffusers(workdir: str, folder: str) -> str:
    """Write the averaged weights of a run as a diffusers `UNet2DModel`; returns a one-line summary.

    The folder may exist, but not one of these two files in it.
    """
    from jaxdiff.runs import classes
    from jaxdiff.runs.workdir import read_config

    read_config(workdir)
    table = classes.read(workdir)
    names = DIFFUSERS_FILES if table is None else (*DIFFUSERS_FILES, classes.FILE)
    files = [output.file("--to", f"{folder}/{name}") for name in names]
    for file in files:
        file.check()

    from jaxdiff.distributed import runtime

    runtime.start()

    from jaxdiff.generation.generator import Generator
    from jaxdiff.interop import diffusers
    from jaxdiff.interop.mapping import to_tensors
    from jaxdiff.interop.safetensors_files import write_safetensors

    generator = Generator.load(workdir)
    config = diffusers.model_config(generator.denoiser, generator.image_shape[0])
    tensors = to_tensors(diffusers.entries(diffusers.network_of(generator.denoiser)), generator.params)
    weights, settings, *names_of_classes = files
    weights.check_space(sum(array.nbytes for array in tensors.values()))
    weights.write(lambda draft: write_safetensors(draft, tensors, {"format": "pt"}))
    settings.write(lambda draft: draft.write_text(json.dumps(config, indent=2)))
    for file in names_of_classes:
        file.write(lambda draft: draft.write_text(classes.to_json(table or ())))
    return f"wrote {len(tensors)} tensors of {workdir} to {folder}"


if __name__ == "__main__":
    command.run(main)
