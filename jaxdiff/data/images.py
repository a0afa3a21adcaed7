"""Images on the host: uint8 to float32 in [-1, 1] and back, resizing, grids, and PNG files."""

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from etils import epath
from jaxtyping import Float, Float32, UInt8

from jaxdiff.errors import UserError, expect

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

INK, PAPER = 34, 255
SMALLEST = 32  # least side of an image in a grid, in pixels, unless a scale is given
MARGIN = 4

Resampling = Literal["nearest", "area", "bilinear", "bicubic", "lanczos"]
"""Resizing method: "area" averages over the area of a new pixel, "bicubic" is Keys's kernel with a = -1/2."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, in pixels."""


def to_float(images: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Map 0..255 to [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: Float[np.ndarray, "batch *shape"]) -> UInt8[np.ndarray, "batch *shape"]:
    """Map [-1, 1] to 0..255, rounded and clipped: the inverse of `to_float`, exact at all 256 levels.

    Raises:
      UserError: an image has NaN or infinite values; names the first such image.
    """
    levels = np.rint((images.astype(np.float32) + 1) * 127.5)
    finite = np.asarray(np.isfinite(levels).reshape(len(levels), -1).all(axis=1))
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise UserError(
            f"images[{bad[0]}]: expected finite values, got NaN or infinity in {len(bad)} of {len(finite)} images. "
            "Fix: check the training loss; try an earlier checkpoint, float32, or a lower guidance scale"
        )
    return np.clip(levels, 0, 255).astype(np.uint8)


def resize(
    image: UInt8[np.ndarray, "old_height old_width channels"],
    size: tuple[int, int],
    method: Resampling,
    box: Box | None = None,
) -> UInt8[np.ndarray, "height width channels"]:
    """Resize an image to (height, width), each channel separately; pixel centres lie at half integers.

    All methods except "nearest" low-pass an image that shrinks. Values are rounded after each axis, as Pillow does.
    With a `box`, only this part of the image is resized to `size`.
    """
    from PIL import Image

    names = {"area": "BOX"}
    resample = Image.Resampling[names.get(method, method.upper())]
    planes = (
        Image.fromarray(image[..., i]).resize((size[1], size[0]), resample, box)
        for i in range(image.shape[2])
    )
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def grid(
    images: UInt8[np.ndarray, "batch height width channels"],
    columns: int,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: int | None = None,
) -> UInt8[np.ndarray, "grid_height grid_width channels"]:
    """Lay images out as a grid, row by row.

    Args:
      images: grey or RGB (1 or 3 channels).
      columns: number of images in a row; the last row may be shorter.
      row_labels: texts to the left of the rows.
      column_labels: texts above the columns.
      scale: side of the square that each pixel becomes; None enlarges small images to at least 32 pixels.

    Raises:
      UserError: an argument is out of range, or the number of labels does not match the grid.
    """
    n, height, width, channels = images.shape
    expect(n > 0, "images", images.shape, "at least one image", "give one")
    expect(channels in (1, 3), "images", images.shape, "1 or 3 channels", "select channels")
    expect(columns > 0, "columns", columns, "a number > 0", "give at least 1")
    rows = -(-n // columns)
    for field, labels, count in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        fits = labels is None or len(labels) == count
        expect(fits, field, labels, f"{count} labels", "give a label for each, or None")
    scale = scale or max(1, -(-SMALLEST // min(height, width)))
    expect(scale > 0, "scale", scale, "a number > 0", "give at least 1")
    gap = max(1, min(height, width) * scale // 16)
    cell_height, cell_width = height * scale + gap, width * scale + gap
    board = np.full((rows * cell_height - gap, columns * cell_width - gap, channels), PAPER, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * cell_height, i % columns * cell_width
        large = image.repeat(scale, axis=0).repeat(scale, axis=1)
        board[y : y + height * scale, x : x + width * scale] = large
    down = np.arange(rows) * cell_height + height * scale // 2
    across = np.arange(columns) * cell_width + width * scale // 2
    return _labelled(board, row_labels, down, column_labels, across)


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, "height width channels"]) -> None:
    """Write an image with 1, 3 or 4 channels as PNG, for any suffix of `path`."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, format="PNG")
    epath.Path(path).write_bytes(stream.getvalue())


def _labelled(
    board: np.ndarray,
    row_labels: Sequence[str] | None,
    down: np.ndarray,
    column_labels: Sequence[str] | None,
    across: np.ndarray,
) -> np.ndarray:
    """`board` with row labels at the heights `down` on its left and column labels at `across` above it."""
    if row_labels is None and column_labels is None:
        return board
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=14)
    left = 2 * MARGIN + max((_width(font, label) for label in row_labels or ()), default=-2 * MARGIN)
    top = 14 + 2 * MARGIN if column_labels is not None else 0
    canvas = Image.new("RGB", (left + board.shape[1], top + board.shape[0]), (PAPER,) * 3)
    rgb = board if board.shape[-1] == 3 else board.repeat(3, axis=-1)
    canvas.paste(Image.fromarray(rgb), (left, top))
    draw = ImageDraw.Draw(canvas)
    for y, label in zip(down, row_labels or (), strict=False):
        draw.text((left - MARGIN, top + int(y)), label, (INK,) * 3, font, anchor="rm")
    for x, label in zip(across, column_labels or (), strict=False):
        draw.text((left + int(x), top - MARGIN), label, (INK,) * 3, font, anchor="md")
    return np.asarray(canvas)[..., : board.shape[-1]]


def _width(font: "FreeTypeFont | ImageFont", text: str) -> int:
    return int(np.ceil(font.getlength(text)))
