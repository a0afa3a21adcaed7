"""Output of samples: one image with a grid, an archive of arrays, or a folder of images."""

import pathlib
import shutil
from collections.abc import Mapping

import numpy as np

from jaxdiff.data import images as image_arrays


def write(
    out: pathlib.Path, images: np.ndarray, conditions: Mapping[str, np.ndarray], rows: int | None
) -> None:
    """Store images in the format of `out`'s suffix; an old output is replaced only when the new one is complete.

    Args:
      out: ``.png`` for a grid, ``.npz`` for arrays; any other name is a folder.
      images: uint8 [n, height, width, channels].
      conditions: arrays to store with the images in an archive.
      rows: rows of the grid, for images whose classes come in turn; None for a square.
    """
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        columns = -(-len(images) // rows) if rows else int(np.ceil(np.sqrt(len(images))))
        images = _row_per_class(images, rows, columns) if rows else images
        image_arrays.save_png(partial, image_arrays.grid(images, columns))
    elif out.suffix == ".npz":
        with open(partial, "wb") as stream:
            np.savez_compressed(stream, images=images, **conditions)  # pyright: ignore[reportArgumentType]
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for i, image in enumerate(images):
            image_arrays.save_png(partial / f"{i:06}.png", image)
        if out.is_dir():
            shutil.rmtree(out)
    partial.replace(out)


def _row_per_class(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Images whose classes come in turn, reordered to a row per class, with blanks at the end."""
    grid = np.zeros((rows, columns, *images.shape[1:]), images.dtype)
    for i, image in enumerate(images):
        grid[i % rows, i // rows] = image
    return grid.reshape(rows * columns, *images.shape[1:])
