"""Figure of paired reports: examples in rows, next to the table and the losses by noise level."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from jaxdiff.evaluation.plots.drawing import (
    GAP,
    GREY,
    INK,
    PAPER,
    curves_block,
    font,
    framed,
    side_by_side,
    stacked,
    table_block,
)

CELL = 128
"""Smallest side of an example in the figure, in pixels."""


def figure(
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    table: Sequence[Sequence[str]],
    caption: Sequence[str],
    losses: Mapping[str, Sequence[float]] | None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw examples, the table, and the curves where there are losses. See `examples_block`."""
    side = [table_block(table, caption)]
    if losses:
        side.append(curves_block(losses))
    return np.asarray(framed(side_by_side([examples_block(columns, names), stacked(side)])))


def examples_block(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> Image.Image:
    """One row per example and one column per kind of image, uint8 [n, height, width, channels].

    Pixels are enlarged to squares. The pixels of a column of smaller images are larger.
    """
    height, width = np.max([images.shape[1:3] for images in columns.values()], axis=0)
    scale = max(1, -(-CELL // int(max(height, width))))
    cell_height, cell_width = int(height) * scale + GAP, int(width) * scale + GAP
    left = 8 + int(max((font(14).getlength(name) for name in names), default=0))
    block = Image.new("RGB", (left + len(columns) * cell_width, 52 + len(names) * cell_height), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((0, 0), "Examples", INK, font(18))
    for row, name in enumerate(names):
        draw.text((left - 8, 52 + row * cell_height + cell_height // 2), name, GREY, font(14), anchor="rm")
    for column, (title, images) in enumerate(columns.items()):
        x = left + column * cell_width
        draw.text((x + cell_width // 2, 44), title, INK, font(14), anchor="ms")
        enlarged = min(int(height) // images.shape[1], int(width) // images.shape[2]) * scale
        for row, image in enumerate(images):
            block.paste(_enlarged(image, enlarged), (x, 52 + row * cell_height))
    return block


def _enlarged(image: np.ndarray, factor: int) -> Image.Image:
    rgb = image if image.shape[-1] == 3 else image[..., :1].repeat(3, axis=-1)
    return Image.fromarray(np.ascontiguousarray(rgb.repeat(factor, axis=0).repeat(factor, axis=1)))
