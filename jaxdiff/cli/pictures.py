"""Sampled images as an output: a grid in one picture, an archive of arrays, or a folder of pictures."""

import math
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from jaxdiff.cli.output import PICTURES, Output
from jaxdiff.data import images as image_arrays
from jaxdiff.data.image_files import MODES
from jaxdiff.errors import expect

LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383}
"""Pixels, by format."""


def write(output: Output, images: np.ndarray, conditions: Mapping[str, np.ndarray], rows: int | None) -> None:
    """Write images in the format of an output.

    Args:
      output: a picture for a grid, ``.npz`` or ``.npy`` for arrays, or a folder of ``000000.png`` and on.
      images: uint8 [n, height, width, channels].
      conditions: arrays to store with the images in ``.npz``.
      rows: rows of the grid, for images whose classes come in turn; None for a square.
    """

    def fill(draft: pathlib.Path) -> None:
        if output.suffix in PICTURES:
            _save_picture(draft, _grid(images, rows), PICTURES[output.suffix])
        elif output.is_folder:
            for i, image in enumerate(images):
                _save_picture(draft / f"{i:06}.png", image, "PNG")
        else:
            with draft.open("wb") as stream:
                _save_arrays(stream, output.suffix, images, conditions)

    output.write(fill)


def check(output: Output, n: int, shape: tuple[int, ...], rows: int | None) -> None:
    """Raise `UserError` unless the format can hold n images [height, width, channels]; before they are sampled."""
    if output.suffix in PICTURES:
        _check_grid(output, n, shape, rows)
    elif output.is_folder:
        _check_channels(output, shape, tuple(MODES))


def _check_grid(output: Output, n: int, shape: tuple[int, ...], rows: int | None) -> None:
    _check_channels(output, shape, (1, 3))
    kind, cells = PICTURES[output.suffix], _cells(n, rows)
    scale = max(1, -(-image_arrays.SMALLEST // min(shape[:2])))
    longest = max(count * side * scale for count, side in zip(cells, shape[:2], strict=True))
    expect(longest <= LONGEST_SIDE[kind], "--out", output.path.name,
           f"a grid of at most {LONGEST_SIDE[kind]:,} pixels a side in {kind}",
           "give the name of a folder, or one that ends with .npz", f"{longest:,}")  # fmt: skip


def _check_channels(output: Output, shape: tuple[int, ...], known: tuple[int, ...]) -> None:
    listed, fix = ", ".join(map(str, known)), "give a name that ends with .npz"
    expect(shape[2] in known, "--out", output.path.name, f"images of {listed} channels for pictures", fix,
           f"{shape[2]} channels")  # fmt: skip


def _cells(n: int, rows: int | None) -> tuple[int, int]:
    """Rows and columns of a grid of n images."""
    if rows:
        return rows, -(-n // rows)
    across = math.isqrt(n - 1) + 1
    return -(-n // across), across


def _grid(images: np.ndarray, rows: int | None) -> np.ndarray:
    _, across = _cells(len(images), rows)
    return image_arrays.grid(_row_per_class(images, rows, across) if rows else images, across)


def _row_per_class(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Images whose classes come in turn, reordered to a row per class, with blanks at the end."""
    grid = np.zeros((rows, columns, *images.shape[1:]), images.dtype)
    for i, image in enumerate(images):
        grid[i % rows, i // rows] = image
    return grid.reshape(rows * columns, *images.shape[1:])


def _save_picture(path: pathlib.Path, image: np.ndarray, kind: str) -> None:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if kind == "JPEG" and picture.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    options = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}[kind]
    with path.open("wb") as stream:
        picture.save(stream, format=kind, **options)


def _save_arrays(stream, suffix: str, images: np.ndarray, conditions: Mapping[str, np.ndarray]) -> None:
    if suffix == ".npy":
        np.save(stream, images)
    else:
        np.savez_compressed(stream, images=images, **conditions)  # pyright: ignore[reportArgumentType]
