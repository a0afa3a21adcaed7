"""Figure of the evaluation of scenes: samples with their captions and wrong attributes, the table, and losses."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from jaxdiff.evaluation.plots.drawing import (
    GREY,
    INK,
    PAPER,
    curves_block,
    font,
    framed,
    side_by_side,
    stacked,
    table_block,
    thumbnail,
    wrapped,
)
from jaxdiff.evaluation.scenes.classifier import ATTRIBUTES

CORRECT, WRONG = (0, 158, 115), (213, 94, 0)  # distinct for colour-blind readers (Okabe & Ito)
COLUMNS, ROWS, CELL, COLUMN = 6, 4, 96, 134

Correct = Mapping[str, Bool[np.ndarray, "n"]]
"""Which images are correct in each attribute, and in "all"."""


def figure(
    title: str,
    images: UInt8[np.ndarray, "n image_height image_width 3"],
    captions: Sequence[str],
    correct: Correct,
    table: Sequence[Sequence[str]],
    caption: Sequence[str],
    losses: Mapping[str, Sequence[float]] | None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw samples, the table, and the curves where there are losses."""
    side = [table_block(table, caption)]
    if losses is not None:
        side.append(curves_block(losses))
    return np.asarray(framed(side_by_side([_panel(title, images, captions, correct), stacked(side)])))


def _panel(title: str, images: np.ndarray, captions: Sequence[str], correct: Correct) -> Image.Image:
    """Samples in green or orange frames, above their captions and wrong attributes."""
    line, top, edge = 14, 34, 3
    notes = [
        [(part, INK) for part in wrapped(text, 11, COLUMN - 12)]
        + [(part, WRONG) for part in wrapped(_wrong(correct, i), 11, COLUMN - 12) if part]
        for i, text in enumerate(captions)
    ]
    height = CELL + 2 * edge + 6 + line * max(map(len, notes)) + 12
    rows = -(-len(captions) // COLUMNS)
    panel = Image.new("RGB", (COLUMN * min(COLUMNS, len(captions)), top + rows * height), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), title, INK, font(18))
    draw.text((panel.width - 12, 4), "green: correct, orange: wrong", GREY, font(12), anchor="ra")
    for i, lines in enumerate(notes):
        x, y = COLUMN * (i % COLUMNS), top + height * (i // COLUMNS)
        box = (x, y, x + CELL + 2 * edge - 1, y + CELL + 2 * edge - 1)
        draw.rectangle(box, CORRECT if correct["all"][i] else WRONG)
        panel.paste(thumbnail(images[i], CELL), (x + edge, y + edge))
        for j, (text, colour) in enumerate(lines):
            draw.text((x, y + CELL + 2 * edge + 6 + j * line), text, colour, font(11))
    return panel


def _wrong(correct: Correct, i: int) -> str:
    """The wrong attributes of an image. A wrong count makes all others wrong, and stands alone."""
    wrong = [name for name in ATTRIBUTES if not correct[name][i]]
    return f"wrong: {', '.join(wrong[:1] if 'count' in wrong else wrong)}" if wrong else ""
