"""Make images with a trained model.

python -m jaxdiff.sample --workdir runs/digits --n 100 --label all --out digits.png
python -m jaxdiff.sample --workdir runs/digits --n 8 --label 3 --guidance 2 --steps 30 --out threes
python -m jaxdiff.sample --workdir runs/digits --n 1000 --label all --out digits.npz
python -m jaxdiff.sample --workdir runs/digits --n 16 --label 3 --known digit.png --mask mask.png
"""

import pathlib
import shutil
from collections.abc import Sequence

from jaxdiff import command
from jaxdiff.errors import UserError, require

DESCRIPTION = "Make images with a trained model."
EPILOG = """\
--out decides the form:
  x.png   one picture, a grid; for --label all with a row for each class
  x.npz   'images' (uint8, [n, height, width, channels]) and one array for each condition
  x       a folder of single pictures, 000000.png and on
--config.sampling.PATH=VALUE changes any other part of the stored recipe."""


def parser() -> command.Parser:
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--workdir", required=True, help="folder of the training run")
    flags.add_argument(
        "--out", default="samples.png", help="where to: .png, .npz or a folder (default: %(default)s)"
    )
    flags.add_argument("--overwrite", action="store_true", help="replace an existing output")
    flags.add_argument(
        "--n", type=int, default=None, help="number of images (default: one for each label given)"
    )
    flags.add_argument(
        "--label", default=None, help="a class, a comma-separated list, 'all' in turn, or 'none'"
    )
    flags.add_argument(
        "--seed", type=int, default=0, help="image i of a seed is always the same (default: 0)"
    )
    flags.add_argument("--guidance", type=float, default=None, help="guidance scale; 1 is no guidance")
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
    flags.add_argument("--known", default=None, help="a picture of which a part is to be made anew")
    flags.add_argument("--mask", default=None, help="a picture of the same size, white where to do so")
    flags.add_argument("--steps", type=int, default=None, help="sampling steps")
    flags.add_argument(
        "--sampler", default=None, help="a class of jaxdiff.sampling: ddim, heun, 'Ddim(eta=1.0)', ..."
    )
    flags.add_argument("--step", type=int, default=None, help="which checkpoint (default: the newest)")
    flags.add_argument(
        "--packages", default="", help="comma-separated packages that the stored config may use"
    )
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    out = pathlib.Path(flags.out).expanduser()
    if out.exists() and not flags.overwrite:
        raise UserError(f"--out={flags.out}: it exists. Fix: choose another name, or pass --overwrite")
    require(flags.n is None or flags.n > 0, "--n", flags.n, "there would be no image", "give at least 1")

    from jaxdiff.distributed import runtime
    from jaxdiff.experiment import read_config

    read_config(flags.workdir)  # before the slow imports, so that a wrong folder is told at once
    if flags.steps is not None:
        overrides.append(("sampling.steps", str(flags.steps)))
    if flags.sampler is not None:
        overrides.append(("sampling.sampler", sampler_target(flags.sampler)))
    runtime.start()

    from jaxdiff.generator import Generator

    packages = [name for name in flags.packages.split(",") if name]
    generator = Generator.load(
        flags.workdir,
        step=flags.step,
        overrides=overrides,
        packages=packages,
        guide=command.guide_run(flags.guide),
    )
    conditions, classes = {}, None
    if "label" in generator.denoiser.conditioner.parts:
        classes = generator.denoiser.conditioner.parts["label"].num_classes
        conditions["label"] = labels(flags.label, flags.n, classes)
    elif flags.label is not None:
        raise UserError(f"--label={flags.label}: the model has no label. Fix: leave it out")
    images = generator(
        flags.n, seed=flags.seed, guidance=flags.guidance, negative=named_values(flags.negative),
        known=flags.known and read_picture("--known", flags.known, generator.image_shape),
        mask=flags.mask and read_picture("--mask", flags.mask, (*generator.image_shape[:2], 1)) >= 128,
        **conditions,
    )  # fmt: skip
    write(out, images, conditions, rows=classes if flags.label in (None, "all") else None)
    print(f"{len(images)} images in {out}")


def labels(text: str | None, n: int | None, classes: int) -> list[int] | None:
    """The class of each image: what was asked for, repeated in turn up to `n`."""
    if text == "none":
        return None
    if text in (None, "all"):
        asked = list(range(classes))
    else:
        try:
            asked = [int(word) for word in str(text).split(",")]
        except ValueError:
            fix = f"give classes of 0 to {classes - 1}, such as 3 or 3,1,4, or all, or none"
            raise UserError(f"--label={text}: not a class. Fix: {fix}") from None
    n = len(asked) if n is None else n
    return [asked[i % len(asked)] for i in range(n)]


def named_values(words: Sequence[str]) -> dict:
    """``name=value`` each; whole numbers are numbers."""
    values = {}
    for word in words:
        name, equals, value = word.partition("=")
        require(bool(name and equals), "--negative", word, "it names no value", "write label=5")
        values[name] = int(value) if value.lstrip("-").isdigit() else value
    return values


def read_picture(flag: str, path: str, shape: tuple[int, int, int]):
    """A picture as uint8 [height, width, channels], which must have the size of the model's images."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as opened:
            picture = np.asarray(ImageOps.exif_transpose(opened).convert("L" if shape[2] == 1 else "RGB"))
    except OSError as error:
        raise UserError(
            f"{flag}={path}: {error.strerror or 'it is no picture'}. Fix: give a PNG file"
        ) from None
    height, width, _ = shape
    require(
        picture.shape[:2] == (height, width), flag, path,
        f"it has {picture.shape[1]}x{picture.shape[0]} pixels, not {width}x{height}", "scale or crop it",
    )  # fmt: skip
    return picture.reshape(shape)


def sampler_target(name: str) -> str:
    """``module:Class(...)`` for the name of a sampler, found by looking through `jaxdiff.sampling`."""
    import importlib
    import inspect
    import pkgutil

    from jaxdiff import sampling

    word, bracket, arguments = name.partition("(")
    found = {}
    for module in pkgutil.iter_modules(sampling.__path__):
        source = importlib.import_module(f"jaxdiff.sampling.{module.name}")
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


def write(out: pathlib.Path, images, conditions: dict, rows: int | None) -> None:
    """Store images in the form that the name of `out` asks for. The old output goes only once the new one is whole."""
    import numpy as np

    from jaxdiff.data import images as pictures

    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        columns = -(-len(images) // rows) if rows else int(np.ceil(np.sqrt(len(images))))
        images = _by_class(images, rows, columns) if rows else images
        pictures.save_png(partial, pictures.grid(images, columns))
    elif out.suffix == ".npz":
        given = {name: np.asarray(value) for name, value in conditions.items() if value is not None}
        with open(partial, "wb") as stream:
            np.savez_compressed(stream, images=images, **given)  # pyright: ignore[reportArgumentType]
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for i, image in enumerate(images):
            pictures.save_png(partial / f"{i:06}.png", image)
        if out.is_dir():
            shutil.rmtree(out)
    partial.replace(out)


def _by_class(images, rows: int, columns: int):
    """Images given in turn of their classes, laid out with a row for each class and blanks at the end."""
    import numpy as np

    laid = np.zeros((rows, columns, *images.shape[1:]), images.dtype)
    for i, image in enumerate(images):
        laid[i % rows, i // rows] = image
    return laid.reshape(rows * columns, *images.shape[1:])


if __name__ == "__main__":
    command.run(main)
