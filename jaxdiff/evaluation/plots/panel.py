"""Figure of a report: samples above their nearest training images, the table, and losses by noise level."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from jaxdiff.evaluation.plots.drawing import (
    GAP,
    GREY,
    INK,
    PAPER,
    cell_side,
    curves_block,
    font,
    framed,
    side_by_side,
    stacked,
    table_block,
    thumbnail,
)

PANELS_IN_ROW = 2


class Gallery(NamedTuple):
    """Samples to show, by title of their panel.

    Attributes:
      labels: class of each sample: its column.
      images: the samples.
      neighbours: the training image nearest to each sample; empty where there are none.
    """

    labels: Integer[np.ndarray, "n"]
    images: Mapping[str, UInt8[np.ndarray, "n height width channels"]]
    neighbours: Mapping[str, UInt8[np.ndarray, "n height width channels"]]


def figure(
    table: Sequence[Sequence[str]],
    caption: Sequence[str],
    losses: Mapping[str, Sequence[float]] | None,
    gallery: Gallery,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the panels of a gallery, the table, and the curves where there are losses."""
    panels = [_panel(gallery, title) for title in gallery.images]
    rows = [side_by_side(panels[i : i + PANELS_IN_ROW]) for i in range(0, len(panels), PANELS_IN_ROW)]
    side = [table_block(table, caption)]
    if losses is not None:
        side.append(curves_block(losses))
    return np.asarray(framed(side_by_side([stacked(rows), stacked(side)])))


def _panel(gallery: Gallery, title: str) -> Image.Image:
    """One column per class; each sample above its nearest training image."""
    labels, images, neighbours = gallery.labels, gallery.images[title], gallery.neighbours.get(title)
    classes = np.unique(labels)
    most = max(int((labels == label).sum()) for label in classes)
    cell = cell_side(images.shape[1:3])
    below = cell + GAP // 2 if neighbours is not None else 0
    left, top, pair = 62, 52, cell + below + 3 * GAP
    panel = Image.new("RGB", (left + len(classes) * (cell + GAP) - GAP, top + most * pair - 3 * GAP), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), title, INK, font(18))
    for column, label in enumerate(classes):
        x = left + column * (cell + GAP)
        draw.text((x + cell // 2, top - 8), str(label), INK, font(14), anchor="ms")
        for row, i in enumerate(np.flatnonzero(labels == label)):
            y = top + row * pair
            panel.paste(thumbnail(images[i], cell), (x, y))
            if neighbours is not None:
                panel.paste(thumbnail(neighbours[i], cell), (x, y + below))
    for row in range(most):
        middle = top + row * pair + cell // 2
        draw.text((left - 8, middle), "sample", INK, font(12), anchor="rm")
        if neighbours is not None:
            draw.text((left - 8, middle + below), "nearest", GREY, font(12), anchor="rm")
    return panel
