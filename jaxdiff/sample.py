"""Generate images with a trained model.

python -m jaxdiff.sample --workdir runs/digits --n 100 --label all --out digits.png
python -m jaxdiff.sample --workdir runs/flowers --classes
python -m jaxdiff.sample --workdir runs/flowers --n 16 --label tulip,rose
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
python -m jaxdiff.sample --workdir runs/karlo --text "a lighthouse" --steps prior=25,decoder=25,super_res=7
"""

from collections.abc import Sequence
from typing import Any

from jaxdiff.cli import app, checkpoints, limits, request
from jaxdiff.errors import expect

DESCRIPTION = "Generate images with a trained model."
EPILOG = """\
--out decides the format, by its suffix in any case:
  x.png .jpg .jpeg .webp   one picture, a grid; for --label all with a row for each class
  x.npz                    'images' (uint8, [n, height, width, channels]) and one array for each condition
  x.npy                    the images alone
  x or x/                  a folder of single images, 000000.png and on
--overwrite replaces an earlier output; a folder that holds anything else is refused.
--conditions names a file with a JSON object for each image, {"label": 3, "low_res": "photo.png"}; paths of images are
relative to the file's folder, and null stands for no condition.
A class is given by its name or by its number, {"label": "tulip"}. A word that is a name means this class, also where
the name is a number. --classes shows both.
Several --text, --image or --condition of one name are taken in turn, as are several labels.
Where a condition is an image with transparency, transparent pixels are generated and opaque ones stay; an image without
transparency is a hint, of which no pixel stays, or with --mask all that are not white there. Unless such an image is
given, --known with --mask is it.
--config.sampling.PATH=VALUE changes any other part of the stored recipe."""


def parser() -> app.Parser:
    """The flags of the command."""
    flags = app.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--workdir", default=None, help="folder of the training run")
    checkpoints.add_step(flags)
    _add_cascade(flags)
    _add_refiner(flags)
    _add_controls(flags)
    _add_output(flags)
    _add_conditions(flags)
    _add_edit(flags)
    _add_recipe(flags)
    flags.add_argument(
        "--packages", default="", help="comma-separated packages that the stored config may use"
    )
    flags.add_no_verify()
    return flags


def _add_cascade(flags: app.Parser) -> None:
    flags.add_argument(
        "--cascade",
        default=None,
        metavar="FOLDER[:STEP],...",
        help="runs in sequence, each with the images of the one before as a condition",
    )
    flags.add_argument(
        "--cascade-field",
        default=None,
        metavar="NAME",
        help="the condition that takes these images, if there are several image conditions",
    )


def _add_controls(flags: app.Parser) -> None:
    for name, what in (
        ("control-net", "a ControlNet"),
        ("t2i-adapter", "a T2I-Adapter"),
        ("ip-adapter", "an IP-Adapter, with --image-encoder"),
    ):
        flags.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="NAME=FILE[:SCALE]",
            help=f"{what} for Stable Diffusion; --image NAME=FILE gives its image",
        )
    flags.add_argument(
        "--image-encoder", default=None, metavar="FILE", help="CLIP's image encoder: a file or a folder"
    )


def _add_refiner(flags: app.Parser) -> None:
    flags.add_argument(
        "--refiner",
        default=None,
        metavar="FOLDER[:FRACTION]",
        help="a run that completes the latents of --workdir after this fraction of the steps (default: 0.8); "
        "LoRA files and controls act on --workdir only",
    )


def _add_output(flags: app.Parser) -> None:
    flags.add_argument(
        "--out",
        default="samples.png",
        help="output: a picture, .npz, .npy or a folder (default: %(default)s)",
    )
    flags.add_argument("--overwrite", action="store_true", help="replace an existing output")
    flags.add_argument(
        "--n", type=int, default=None, help="number of images (default: one for each label or condition)"
    )
    flags.add_argument("--size", default=None, metavar="HxW", help="height and width, if not training's")
    flags.add_argument(
        "--seed", type=int, default=0, help="image i of a seed is always the same (default: 0)"
    )
    flags.add_argument(
        "--noise",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="the initial noise, a .npy of standard normal floats [n, height, width, channels] of the diffused data, "
        "or all draws of a sampler with noise, [draws, n, ...]; with the name of a stage in a run of stages",
    )


def _add_conditions(flags: app.Parser) -> None:
    flags.add_argument(
        "--label",
        default=None,
        help="a class by its name or number, a comma-separated list, 'all' in turn, or 'none'; see --classes",
    )
    flags.add_argument(
        "--classes",
        action="store_true",
        help="show the names and numbers of the run's classes, and do no more",
    )
    flags.add_argument("--text", action="append", default=[], help="the caption, taken literally")
    for name, metavar, what in (
        ("image", "NAME=FILE", "a file for an image condition"),
        ("condition", "NAME=VALUE", "any condition: numbers, JSON, a text, a file, or 'none'"),
        ("level", "NAME=LEVEL", "noise level of a noise-augmented condition"),
        ("negative", "NAME=VALUE", "a condition to guide away from, for example label=5"),
    ):
        flags.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=what)
    flags.add_argument("--conditions", default=None, metavar="FILE", help="JSON lines, one for each image")


def _add_edit(flags: app.Parser) -> None:
    flags.add_argument("--known", default=None, help="an image whose pixels outside the mask are kept")
    flags.add_argument(
        "--mask",
        default=None,
        help="an image of the size of --known or --image, white at the pixels to generate",
    )
    flags.add_argument("--edit", default=None, help="an image to change towards the conditions")
    flags.add_argument(
        "--strength",
        type=app.number,
        default=None,
        help=f"of the edit: the fraction of the steps that are taken, from 0 to 1 (default: {request.STRENGTH})",
    )
    flags.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a condition that describes the image to edit, which is then inverted to its noise by DDIM",
    )


def _add_recipe(flags: app.Parser) -> None:
    flags.add_argument(
        "--guidance",
        default=None,
        metavar="SCALE",
        help="guidance scale, 1 for none; or text=5,low_res=1.5; in a run of stages prior=4,decoder=8",
    )
    flags.add_argument(
        "--guiding-model",
        "--guide",
        default=None,
        metavar="FOLDER[:STEP]",
        help="the run of a weaker model, for Autoguidance",
    )
    flags.add_argument(
        "--steps",
        default=None,
        metavar="STEPS",
        help="sampling steps; in a run of stages prior=25,decoder=25",
    )
    flags.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="a LoRA file to merge into Stable Diffusion; several are added up",
    )
    flags.add_argument(
        "--sampler",
        default=None,
        help="a recipe of the run, or a class of jaxdiff.sampling.samplers: ddim, dpm_solver2m, 'Ddim(eta=1.0)', ...",
    )


def parse(argv: Sequence[str]) -> request.Request:
    """The request of a command line."""
    return request.of(*parser().parse(argv))


def show_classes(workdir: str) -> None:
    """Print the class table of a run, a class per line: its number, and its name.

    Raises:
      UserError: there is no run, or it has no table.
    """
    from jaxdiff.data.classes import numbered
    from jaxdiff.runs import classes
    from jaxdiff.runs.workdir import read_config

    read_config(workdir)
    table = classes.read(workdir)
    fix = "use numbers; a run of an earlier version has a table once it is continued"
    expect(table is not None, "--workdir", workdir, f"a run with {classes.FILE}", fix, "none")
    print("\n".join(numbered(table or ())))


def _check_limits(requested: request.Request, config: Any) -> None:
    """Raise `UserError` where the number or the size of the images exceeds this machine."""
    shape = tuple(config.get("task", {}).get("image_shape", ()))
    if len(shape) == 3:
        limits.check(requested.out, requested.flags.n or 1, (*(requested.size or shape[:2]), shape[2]))


def main(argv: Sequence[str]) -> None:
    """Sample from a command line."""
    from jaxdiff.runs.workdir import read_config

    flags, overrides = parser().parse(argv)
    if flags.classes:
        for folder, _ in request.runs(flags):
            show_classes(folder)
        return
    requested = request.of(flags, overrides)
    # Before the slow imports, so that a wrong folder or a request that is too large is reported at once.
    last = [read_config(folder) for folder, _ in requested.runs][-1]
    _check_limits(requested, last)

    from jaxdiff.distributed import runtime

    runtime.start()

    from jaxdiff.cli import sampling
    from jaxdiff.runs.stages import is_staged

    (sampling.run_stages if is_staged(last) and requested.flags.cascade is None else sampling.run)(requested)


if __name__ == "__main__":
    app.run(main)
