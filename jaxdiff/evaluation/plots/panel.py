"""A report on classes as one picture: samples above their nearest training images, figures, losses."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from jaxdiff.evaluation.plots.drawing import (
    GAP,
    GREY,
    INK,
    PAPER,
    below,
    beside,
    cell_side,
    curves_block,
    font,
    framed,
    table_block,
    thumbnail,
)
from jaxdiff.evaluation.plots.tables import caption, figures

PANELS_IN_ROW = 2


class Gallery(NamedTuple):
    """Samples to look at, by guidance, and the training image nearest to each."""

    labels: Integer[np.ndarray, "n"]
    images: dict[float, UInt8[np.ndarray, "n height width channels"]]
    neighbours: dict[float, UInt8[np.ndarray, "n height width channels"]]


def picture(report: Mapping[str, Any], samples: Gallery) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a report."""
    panels = [_panel(samples, guidance) for guidance in samples.images]
    rows = [beside(panels[i : i + PANELS_IN_ROW]) for i in range(0, len(panels), PANELS_IN_ROW)]
    side = [table_block(figures(report), caption(report))]
    if report["noise_losses"] is not None:
        side.append(curves_block(report["noise_losses"]))
    return np.asarray(framed(beside([below(rows), below(side)])))


def _panel(samples: Gallery, guidance: float) -> Image.Image:
    """Samples of one guidance: a column for each class, each sample above its nearest training image."""
    labels = samples.labels
    classes = np.unique(labels)
    counts = [int((labels == label).sum()) for label in classes]
    cell = cell_side(samples.images[guidance].shape[1:3])
    left, top, pair = 62, 52, 2 * cell + GAP // 2 + 3 * GAP
    panel = Image.new(
        "RGB", (left + len(classes) * (cell + GAP) - GAP, top + max(counts) * pair - 3 * GAP), PAPER
    )
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), f"Samples at guidance {guidance:g}", INK, font(18))
    for column, label in enumerate(classes):
        x = left + column * (cell + GAP)
        draw.text((x + cell // 2, top - 8), str(label), INK, font(14), anchor="ms")
        for row, i in enumerate(np.flatnonzero(labels == label)):
            y = top + row * pair
            panel.paste(thumbnail(samples.images[guidance][i], cell), (x, y))
            panel.paste(thumbnail(samples.neighbours[guidance][i], cell), (x, y + cell + GAP // 2))
    for row in range(max(counts)):
        y = top + row * pair
        draw.text((left - 8, y + cell // 2), "sample", INK, font(12), anchor="rm")
        draw.text((left - 8, y + cell + GAP // 2 + cell // 2), "nearest", GREY, font(12), anchor="rm")
    return panel
