"""Drawing: tables, curves and thumbnails as blocks of a figure, and their layout."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, GREY, LIGHT, PAPER = (34, 34, 34), (120, 120, 120), (222, 222, 222), (255, 255, 255)
TRAIN, TEST = (0, 114, 178), (213, 94, 0)  # distinct for colour-blind readers (Okabe & Ito)
MARGIN, GAP, SIDE = 24, 4, 430


def table_block(rows: Sequence[Sequence[str]], caption: Sequence[str]) -> Image.Image:
    """A table of strings, and its caption."""
    column, line = 100, 21
    width = max(SIDE, 232 + column * (len(rows[0]) - 1))
    lines = [part for text in caption for part in wrapped(text, 12, width)]
    block = Image.new("RGB", (width, 36 + line * len(rows) + 14 + 17 * len(lines)), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((0, 0), "Results", INK, font(18))
    for i, (name, *values) in enumerate(rows):
        y = 30 + i * line
        draw.text((0, y), name, INK, font(14))
        for j, value in enumerate(values):
            right = width - (len(values) - 1 - j) * column
            draw.text((right, y), value, GREY if i == 0 or j == 0 else INK, font(14), anchor="ra")
        if i == 0:
            draw.line((0, y + line - 2, width, y + line - 2), LIGHT)
    for i, text in enumerate(lines):
        draw.text((0, 30 + line * len(rows) + 14 + 17 * i), text, GREY, font(12))
    return block


def curves_block(losses: Mapping[str, Sequence[float]]) -> Image.Image:
    """Losses on training and test images by log-SNR. A gap between the curves is overfitting."""
    fine = 3  # drawn large, then reduced: Pillow does not smooth lines
    width, height, left, top, bottom = SIDE, 260, 46, 36, 44
    block = Image.new("RGB", (width * fine, height * fine), PAPER)
    draw = ImageDraw.Draw(block)
    order = np.argsort(losses["log_snr"])
    x = np.asarray(losses["log_snr"])[order]
    values = np.asarray([losses["train"], losses["test"]])[:, order]
    logarithmic = bool(values.min() > 0 and values.max() > 20 * values.min())
    heights = np.log10(values) if logarithmic else values
    x_axis = Axis(float(x.min()), float(x.max()), left * fine, (width - 14) * fine)
    low = heights.min() - 0.05 * np.ptp(heights) if logarithmic else min(0.0, heights.min())
    y_axis = Axis(float(low), float(heights.max()), (height - bottom) * fine, top * fine)

    draw.text((0, 0), "Loss by noise level", INK, font(18 * fine))
    for tick in decades(low, heights.max()) if logarithmic else ticks(low, heights.max()):
        y = y_axis(tick)
        draw.line((left * fine, y, (width - 14) * fine, y), LIGHT, fine)
        label = f"{10**tick if logarithmic else tick:.3g}"
        draw.text(((left - 6) * fine, y), label, GREY, font(12 * fine), anchor="rm")
    for tick in ticks(x.min(), x.max()):
        draw.text(
            (x_axis(tick), (height - bottom + 5) * fine), f"{tick:g}", GREY, font(12 * fine), anchor="ma"
        )
    middle = (left + width - 14) * fine / 2
    name = "log-SNR (noise to the left)"
    draw.text((middle, (height - 8) * fine), name, GREY, font(12 * fine), anchor="ms")
    for curve, colour in zip(heights, (TRAIN, TEST), strict=True):
        points = [(x_axis(a), y_axis(b)) for a, b in zip(x, curve, strict=True)]
        draw.line(points, colour, 2 * fine, joint="curve")
    _legend(draw, float((width - 14) * fine), 14.0 * fine, fine)
    return block.reduce(fine)


def _legend(draw: ImageDraw.ImageDraw, right: float, y: float, fine: int) -> None:
    for name, colour in (("test", TEST), ("train", TRAIN)):
        draw.text((right, y), name, INK, font(13 * fine), anchor="rm")
        right -= draw.textlength(name, font(13 * fine)) + 6 * fine
        draw.line((right - 20 * fine, y, right, y), colour, 2 * fine)
        right -= 36 * fine


@dataclasses.dataclass(frozen=True)
class Axis:
    """Maps values in [low, high] to positions in [start, end]."""

    low: float
    high: float
    start: int
    end: int

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers in [low, high]."""
    span = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (10, 5, 2, 1) if span / (unit * factor) >= 3.5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Logarithms of 1, 2, 5, 10, ... between two logarithms; only powers of ten over two decades or more."""
    factors = (1, 2, 5) if high - low < 2 else (1,)
    logs = [e + math.log10(f) for e in range(math.floor(low), math.ceil(high) + 1) for f in factors]
    return [value for value in logs if low - 1e-9 <= value <= high + 1e-9]


def cell_side(size: tuple[int, int]) -> int:
    """Side of a thumbnail: an integer multiple of the side of a small image, so that its pixels stay square."""
    side = max(size)
    return side * max(1, 40 // side) if side <= 48 else 48


def thumbnail(image: np.ndarray, cell: int) -> Image.Image:
    """An image uint8 [height, width, channels] as a square RGB thumbnail of side `cell`."""
    thumbnail = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image[..., :3]).convert("RGB")
    method = Image.Resampling.NEAREST if cell >= max(thumbnail.size) else Image.Resampling.LANCZOS
    return thumbnail.resize((cell, cell), method)


def font(size: int) -> Any:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Break text at spaces into lines of at most `width` pixels."""
    face, lines = font(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and face.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def side_by_side(blocks: Sequence[Image.Image]) -> Image.Image:
    """Blocks in a row, aligned at the top."""
    width = sum(block.width for block in blocks) + MARGIN * (len(blocks) - 1)
    canvas, x = Image.new("RGB", (width, max(block.height for block in blocks)), PAPER), 0
    for block in blocks:
        canvas.paste(block, (x, 0))
        x += block.width + MARGIN
    return canvas


def stacked(blocks: Sequence[Image.Image]) -> Image.Image:
    """Blocks in a column, aligned at the left."""
    height = sum(block.height for block in blocks) + MARGIN * (len(blocks) - 1)
    canvas, y = Image.new("RGB", (max(block.width for block in blocks), height), PAPER), 0
    for block in blocks:
        canvas.paste(block, (0, y))
        y += block.height + MARGIN
    return canvas


def framed(block: Image.Image) -> Image.Image:
    """A block with a margin on all sides."""
    canvas = Image.new("RGB", (block.width + 2 * MARGIN, block.height + 2 * MARGIN), PAPER)
    canvas.paste(block, (MARGIN, MARGIN))
    return canvas
