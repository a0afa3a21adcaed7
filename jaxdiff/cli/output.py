"""Samples on disk: one picture, an archive of arrays, or a folder of single pictures."""

import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxdiff.data import images as pictures


def write(out: pathlib.Path, images, conditions: dict, rows: int | None) -> None:
    """Store images in the form that the name of `out` asks for. The old output goes only once the new one is whole."""
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        columns = -(-len(images) // rows) if rows else int(np.ceil(np.sqrt(len(images))))
        images = _by_class(images, rows, columns) if rows else images
        pictures.save_png(partial, pictures.grid(images, columns))
    elif out.suffix == ".npz":
        given = dict(_arrays(conditions))
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


def _arrays(conditions: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Conditions as arrays under their names; those that some images lack are left out."""
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            yield from _arrays({name: value["value"], f"{name}_level": value["level"]})
        elif value is not None and not (isinstance(value, list) and any(item is None for item in value)):
            yield name, np.asarray(value)


def _by_class(images, rows: int, columns: int):
    """Images given in turn of their classes, laid out with a row for each class and blanks at the end."""
    laid = np.zeros((rows, columns, *images.shape[1:]), images.dtype)
    for i, image in enumerate(images):
        laid[i % rows, i // rows] = image
    return laid.reshape(rows * columns, *images.shape[1:])
