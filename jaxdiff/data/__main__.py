"""Show what a data set looks like before training on it.

python -m jaxdiff.data --config configs/scenes_text.py
python -m jaxdiff.data --config configs/stable_diffusion.py:sdxl --config.data.source.size=None \
    --config.data.buckets=jaxdiff.data.buckets:Buckets --verify --out sheet.png
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxdiff.cli import app, output
from jaxdiff.errors import RunFailure, expect, printable

DESCRIPTION = "Show what a data set looks like: counts, shapes, buckets, broken files and captions."
EPILOG = """\
Of image files only the headers are read, unless --verify decodes them. --config.PATH=VALUE changes any field of the
config.
exit status: 0 all files can be read, 1 some cannot, 2 user error."""


def parser() -> app.Parser:
    flags = app.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--config", help="a config file, configs/x.py or configs/x.py:variant")
    flags.add_argument(
        "--verify", action="store_true", help="decode each image, to find damage behind the header"
    )
    flags.add_argument("--out", default=None, metavar="FILE.png", help="write a contact sheet")
    flags.add_argument("--n", type=int, default=24, help="pictures on the sheet (default: %(default)s)")
    flags.add_argument("--overwrite", action="store_true", help="replace an existing sheet")
    flags.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    expect(flags.n > 0, "--n", flags.n, "a number > 0", "give at least 1")
    sheet = None if flags.out is None else _sheet(flags.out, flags.overwrite)
    config = app.load_config(flags.config, overrides)

    from jaxdiff import config as configs
    from jaxdiff.data.contact_sheet import contact_sheet
    from jaxdiff.data.images import save_png
    from jaxdiff.data.listing import listing_of
    from jaxdiff.data.survey import survey

    pipeline = configs.build(config.data, path="config.data")
    listing = listing_of(pipeline, flags.verify)
    found = survey(pipeline, listing, config.batch_size, flags.verify)
    print(json.dumps(found.report, indent=1) if flags.json else table(found.report), flush=True)
    if sheet is not None:
        picture = contact_sheet(pipeline, listing, found, flags.n)
        sheet.write(lambda draft: save_png(draft, picture))
    broken = found.report["broken"]
    if broken:
        raise RunFailure(f"{len(broken):,} of {found.report['examined']:,} images cannot be read")


def _sheet(name: str, overwrite: bool) -> output.Output:
    """The output for a contact sheet, checked before the work."""
    expect(name.lower().endswith(".png"), "--out", name, "a name that ends with .png", "give one")
    place = dataclasses.replace(output.file("--out", name), overwrite=overwrite)
    place.check()
    return place


def table(report: Mapping[str, Any]) -> str:
    """A report of `survey` as an aligned table for a terminal."""
    rows = list(_rows(report))
    width = max(len(name) for name, _ in rows)
    return "\n".join(printable(f"{name.ljust(width)}  {value}".rstrip()) for name, value in rows)


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    examined, total = report["examined"], report["examples"]
    part = "" if examined == total else f", {examined:,} of them examined"
    yield "examples", f"{total:,} in {report['source']}{part}"
    checked = "decoded" if report["decoded"] else "headers only; --verify decodes all"
    yield "  broken", f"{len(report['broken']):,} ({checked})"
    for name, reason in report["broken"].items():
        yield "", f"{name}: {reason}"
    if report["sizes"]:
        sizes = report["sizes"]
        ends = ", ".join(f"{name} {_size(sizes[name])}" for name in ("smallest", "middle", "largest"))
        yield "sizes", f"{sizes['distinct']:,} different; {ends}"
    if report["buckets"]:
        yield from _of_buckets(report["buckets"])
    if report["captions"]:
        yield from _of_captions(report["captions"])


def _of_buckets(buckets: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    batch_size, total = buckets["batch_size"], sum(each["images"] for each in buckets["each"])
    yield (
        "buckets",
        f"{len(buckets['each'])} of height x width, for {total:,} images in batches of {batch_size}",
    )
    for each in buckets["each"]:
        enlarged = f", {each['enlarged']:,} enlarged" if each["enlarged"] else ""
        rare = f", fewer than a batch of {batch_size}" if each["images"] < batch_size else ""
        cut = f"{each['mean_cut']:.1%} cut off, at most {each['largest_cut']:.1%}"
        yield (
            f"  {_size(each['shape'])}",
            f"{each['images']:,} ({each['images'] / total:.1%}), {cut}{enlarged}{rare}",
        )
    yield "  most cut off", _worst(buckets["most_cut"], "{:.1%}")
    yield "  enlarged", _worst(buckets["enlarged"], "{:.3g} times")
    yield "  left out", _worst(buckets["left_out"], "{:.3g} times")


def _of_captions(captions: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "captions", f"{captions['captions']:,}, {captions['distinct']:,} of them different"
    for kind in ("missing", "empty"):
        names = ", ".join(captions[kind]["names"])
        yield f"  {kind}", f"{captions[kind]['images']:,} images{': ' if names else ''}{names}"
    tokens = captions["tokens"]
    if tokens:
        yield "  tokens", f"{tokens['least']} to {tokens['most']}, half of them up to {tokens['middle']}"
        fraction = tokens["cut"] / captions["captions"]
        yield (
            "  cut",
            f"{tokens['cut']:,} ({fraction:.1%}) are longer than the {tokens['length']} of the tokenizer",
        )
        if tokens["example"]:
            yield "", f"{tokens['example']['name']} loses {tokens['example']['lost']!r}"


def _worst(found: Mapping[str, Any], form: str) -> str:
    """A number of images, and the names of those with the largest values."""
    names = ", ".join(f"{name} ({form.format(value)})" for name, value in found["worst"].items())
    return f"{found['images']:,} images{': ' if names else ''}{names}"


def _size(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


if __name__ == "__main__":
    app.run(main)
