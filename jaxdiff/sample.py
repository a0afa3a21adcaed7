"""Make images with a trained model.

python -m jaxdiff.sample --workdir runs/digits --n 100 --label all --out digits.png
python -m jaxdiff.sample --workdir runs/digits --n 8 --label 3 --guidance 2 --steps 30 --out threes
python -m jaxdiff.sample --workdir runs/digits --n 1000 --label all --out digits.npz
python -m jaxdiff.sample --workdir runs/digits --n 16 --label 3 --known digit.png --mask mask.png
python -m jaxdiff.sample --workdir runs/faces --n 4 --text "a smiling face" --guidance text=5,low_res=1.5 \
    --image low_res=photo.png
python -m jaxdiff.sample --workdir runs/palette --image source=holes.png
python -m jaxdiff.sample --workdir runs/palette --image source=photo.png --mask mask.png
python -m jaxdiff.sample --workdir runs/faces --text "an old face" --edit photo.png --strength 0.5
python -m jaxdiff.sample --cascade runs/base,runs/enlarge --n 16 --label 3 --level low_res=0.1
python -m jaxdiff.sample --workdir runs/faces --conditions many.jsonl --out faces
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxdiff.cli import app as command
from jaxdiff.errors import UserError, require

DESCRIPTION = "Make images with a trained model."
EPILOG = """\
--out decides the form:
  x.png   one picture, a grid; for --label all with a row for each class
  x.npz   'images' (uint8, [n, height, width, channels]) and one array for each condition
  x       a folder of single pictures, 000000.png and on
--conditions names a file with a JSON object for each image, {"label": 3, "low_res": "photo.png"}; the paths of its
pictures start at its own folder, and null stands for no condition.
Several --text, --image or --condition of one name are taken in turn, as are several labels.
Where a condition is an image with transparency, transparent pixels of a picture are made and opaque ones stay; a
picture without any is a hint, of which nothing stays, or with --mask all that is not white there.
--config.sampling.PATH=VALUE changes any other part of the stored recipe."""


def parser() -> command.Parser:
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--workdir", default=None, help="folder of the training run")
    _add_cascade(flags)
    flags.add_argument(
        "--out", default="samples.png", help="where to: .png, .npz or a folder (default: %(default)s)"
    )
    flags.add_argument("--overwrite", action="store_true", help="replace an existing output")
    flags.add_argument(
        "--n", type=int, default=None, help="number of images (default: one for each label or condition)"
    )
    flags.add_argument("--size", default=None, metavar="HxW", help="height and width, if not training's")
    _add_conditions(flags)
    flags.add_argument(
        "--seed", type=int, default=0, help="image i of a seed is always the same (default: 0)"
    )
    flags.add_argument(
        "--guidance", default=None, metavar="SCALE", help="guidance scale, 1 for none; or text=5,low_res=1.5"
    )
    flags.add_argument(
        "--negative",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a condition to be guided away from, label=5 for example",
    )
    flags.add_argument(
        "--guide", default=None, metavar="FOLDER[:STEP]", help="a weaker model's run, for Autoguidance"
    )
    _add_edit(flags)
    flags.add_argument("--steps", type=int, default=None, help="sampling steps")
    flags.add_argument(
        "--sampler", default=None, help="a class of jaxdiff.sampling: ddim, heun, 'Ddim(eta=1.0)', ..."
    )
    flags.add_argument("--step", type=int, default=None, help="which checkpoint (default: the newest)")
    flags.add_argument(
        "--packages", default="", help="comma-separated packages that the stored config may use"
    )
    return flags


def _add_cascade(flags: command.Parser) -> None:
    flags.add_argument(
        "--cascade",
        default=None,
        metavar="FOLDER[:STEP],...",
        help="runs, each of which enlarges what the last has made",
    )
    flags.add_argument(
        "--cascade-field",
        default=None,
        metavar="NAME",
        help="the condition that is handed over, if there are several",
    )


def _add_edit(flags: command.Parser) -> None:
    flags.add_argument("--known", default=None, help="a picture of which a part is to be made anew")
    flags.add_argument(
        "--mask", default=None, help="a picture of the same size as that, or as --image, white where to do so"
    )
    flags.add_argument("--edit", default=None, help="a picture that is to be changed towards the conditions")
    flags.add_argument(
        "--strength",
        type=float,
        default=0.6,
        help="how much, from 0 to 1: a share of the steps (default: %(default)s)",
    )
    flags.add_argument(
        "--source", action="append", default=[], metavar="NAME=VALUE",
        help="what the picture shows: its own noise is used, found by DDIM backwards",
    )  # fmt: skip


def _add_conditions(flags: command.Parser) -> None:
    flags.add_argument(
        "--label", default=None, help="a class, a comma-separated list, 'all' in turn, or 'none'"
    )
    flags.add_argument("--text", action="append", default=[], help="what the condition 'text' is to say")
    for name, metavar, what in (
        ("image", "NAME=FILE", "a picture for a condition that is an image"),
        ("condition", "NAME=VALUE", "any other condition: numbers, JSON, a text, or 'none'"),
        ("level", "NAME=LEVEL", "how noisy a condition is made"),
    ):
        flags.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=what)
    flags.add_argument("--conditions", default=None, metavar="FILE", help="JSON lines, one for each image")


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    out = pathlib.Path(flags.out).expanduser()
    if out.exists() and not flags.overwrite:
        raise UserError(f"--out={flags.out}: it exists. Fix: choose another name, or pass --overwrite")
    require(flags.n is None or flags.n > 0, "--n", flags.n, "there would be no image", "give at least 1")

    from jaxdiff.distributed import runtime
    from jaxdiff.runs.workdir import read_config

    runs = folders(flags)
    for folder, _ in runs:
        read_config(folder)  # before the slow imports, so that a wrong folder is told at once
    if flags.steps is not None:
        overrides.append(("sampling.steps", str(flags.steps)))
    if flags.sampler is not None:
        overrides.append(("sampling.sampler", sampler_target(flags.sampler)))
    runtime.start()

    from jaxdiff.cli import output as outputs
    from jaxdiff.generation.generator import Generator

    packages = [name for name in flags.packages.split(",") if name]
    guide = command.guide_run(flags.guide)
    stages = [
        Generator.load(folder, step=step, overrides=overrides, packages=packages, guide=guide)
        for folder, step in runs
    ]
    images, conditions = (cascaded if flags.cascade else made)(flags, stages)
    outputs.write(out, images, conditions, rows=rows_of(flags, stages[0]))
    print(f"{len(images)} images in {out}")


def folders(flags: argparse.Namespace) -> list[tuple[str, int | None]]:
    """The runs that are to be sampled, each with the step of its checkpoint (None: the newest)."""
    both = flags.workdir is not None and flags.cascade is not None
    require(not both, "--workdir", flags.workdir, "--cascade names the runs", "leave it out")
    if flags.cascade is None:
        if flags.workdir is None:
            raise UserError(
                "--workdir=: a run is needed. Fix: give the folder of a training run, or --cascade"
            )
        return [(flags.workdir, flags.step)]
    for name in ("step", "size", "guide", "known", "mask", "edit"):
        value = getattr(flags, name)
        require(value is None, f"--{name}", value, "a cascade has no use for it", "leave it out")
    require(not flags.negative, "--negative", flags.negative, "a cascade has no use for it", "leave it out")
    runs = [command.guide_run(folder) for folder in flags.cascade.split(",")]
    return [run if isinstance(run, tuple) else (str(run), None) for run in runs]


def made(flags: argparse.Namespace, stages: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """Images of one model, and their conditions."""
    import numpy as np

    from jaxdiff.cli import conditions as asked
    from jaxdiff.cli import values as words
    from jaxdiff.generation import inputs

    generator = stages[0]
    conditioner, trained = generator.denoiser.conditioner, generator.image_shape
    parts, size = conditioner.conditions, words.size(flags.size)
    conditions, n = asked.conditions(flags, conditioner, trained)
    conditions = words.at_levels(conditions, asked.levels(flags, parts))
    height, width = inputs.size(conditioner, conditions, trained, size)
    shape = (height, width, trained[2])
    mask = flags.mask and words.picture_of_size("--mask", flags.mask, (height, width, 1)) >= 128
    if flags.known is None and flags.edit is None:
        conditions, mask = asked.completed(conditions, parts, mask)
    options = {
        "seed": flags.seed, "guidance": asked.guidance(flags.guidance, parts), "image_size": size, "mask": mask,
        "negative": asked.one_for_all("--negative", flags.negative, parts, trained),
    }  # fmt: skip
    if flags.edit is None:
        require(not flags.source, "--source", flags.source, "no picture is edited", "give --edit, too")
        known = flags.known and words.picture_of_size("--known", flags.known, shape)
        return generator(n, known=known, **options, **conditions), conditions
    require(flags.known is None, "--known", flags.known, "--edit names the picture", "leave it out")
    picture = words.picture_of_size("--edit", flags.edit, shape)
    source = asked.one_for_all("--source", flags.source, parts, trained) if flags.source else None
    pictures = np.broadcast_to(picture, (n, *picture.shape))
    return generator.edit(pictures, flags.strength, before=source, **options, **conditions), conditions


def cascaded(flags: argparse.Namespace, stages: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """Images of the last stage, and the conditions of all; says how well each stage keeps to the one before."""
    from jaxdiff.cli import conditions as asked
    from jaxdiff.generation.cascade import Cascade, consistency

    cascade = Cascade(tuple(stages), flags.cascade_field)
    parts = {name: part for stage in stages for name, part in stage.denoiser.conditioner.conditions.items()}
    handed = {cascade.field_of(number) for number in range(1, len(stages))}
    first = stages[0].denoiser.conditioner
    own = first.clone(conditions={name: part for name, part in parts.items() if name not in handed})
    conditions, n = asked.conditions(flags, own, stages[0].image_shape)
    scale, levels = asked.guidance(flags.guidance, parts), asked.levels(flags, parts)
    images = cascade.run(n, seed=flags.seed, guidance=scale, levels=levels, **conditions)
    for number, difference in enumerate(consistency(images), 1):
        size = "x".join(map(str, images[number].shape[1:3]))
        print(
            f"stage {number}: {size}, {difference:.2f} of 255 levels (RMS) from the images that it was given"
        )
    return images[-1], conditions


def rows_of(flags: argparse.Namespace, generator: Any) -> int | None:
    """How many rows a picture has when all classes are made in turn; None for any number."""
    parts = generator.denoiser.conditioner.conditions
    given = (
        flags.conditions
        or flags.label not in (None, "all")
        or any(w.startswith("label=") for w in flags.condition)
    )
    return None if given or "label" not in parts else parts["label"].num_classes


def sampler_target(name: str) -> str:
    """``module:Class(...)`` for the name of a sampler, found by looking through `jaxdiff.sampling.samplers`."""
    import importlib
    import inspect
    import pkgutil

    from jaxdiff.sampling import samplers

    word, bracket, arguments = name.partition("(")
    found = {}
    for module in pkgutil.iter_modules(samplers.__path__):
        source = importlib.import_module(f"{samplers.__name__}.{module.name}")
        for label, cls in inspect.getmembers(source, inspect.isclass):
            is_sampler = all(hasattr(cls, name) for name in ("init", "step", "calls"))
            hidden = label.startswith("_") or getattr(cls, "_is_protocol", False)
            if cls.__module__ == source.__name__ and is_sampler and not hidden:
                found[label.lower()] = f"{cls.__module__}:{label}"
    if ":" in word:
        return name
    if word.lower() not in found:
        names = ", ".join(target.partition(":")[2] for target in found.values())
        raise UserError(f"--sampler={name}: there is no such sampler. Fix: use one of {names}")
    return found[word.lower()] + bracket + arguments


if __name__ == "__main__":
    command.run(main)
