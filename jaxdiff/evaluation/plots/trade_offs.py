"""Plots of many settings: points with their Pareto front, and curves beside a level of real images."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from jaxdiff.evaluation.plots.drawing import GREY, INK, LIGHT, PAPER, SIDE, Axis, font, ticks

COLOURS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (0, 0, 0),
    (140, 86, 75),
    (148, 103, 189),
    (188, 189, 34),
)
"""Seven colours that readers with colour blindness can tell apart (Okabe & Ito), and three more."""

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 290, 58, 14, 36, 44
FINE = 3
"""Plots are drawn this much larger and then reduced, since Pillow does not smooth lines."""


class _Plot(NamedTuple):
    block: Image.Image
    draw: ImageDraw.ImageDraw
    x: Axis
    y: Axis

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        """A line through points, each of which is marked."""
        placed = [(self.x(x), self.y(y)) for x, y in points]
        self.draw.line(placed, colour, 2 * FINE, joint="curve")
        for x, y in placed:
            self.disc(x, y, 3, colour)

    def disc(self, x: float, y: float, radius: int, colour: tuple[int, int, int]) -> None:
        """A filled disc at a position."""
        size = radius * FINE
        self.draw.ellipse((x - size, y - size, x + size, y + size), colour)


def front_block(
    title: str, axes: tuple[str, str], points: Sequence[tuple[float, float]], on_front: Sequence[bool]
) -> Image.Image:
    """Settings as points, with a line through those of the Pareto front.

    Args:
      axes: names of the horizontal and the vertical axis.
    """
    plot = _plot(title, axes, points)
    chosen = sorted(point for point, is_best in zip(points, on_front, strict=True) if is_best)
    for x, y in points:
        plot.disc(plot.x(x), plot.y(y), 3, GREY)
    plot.line(chosen, COLOURS[0])
    return plot.block.reduce(FINE)


def curves_block(
    title: str,
    axes: tuple[str, str],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    real: float | None = None,
) -> Image.Image:
    """Curves by name, and a grey line at the level of real images."""
    every = [point for curve in curves.values() for point in curve]
    levels = [] if real is None else [(every[0][0], real)]
    plot = _plot(title, axes, [*every, *levels])
    if real is not None:
        y = plot.y(real)
        plot.draw.line((plot.x.start, y, plot.x.end, y), GREY, 2 * FINE)
        plot.draw.text((plot.x.end, y - 3 * FINE), "real images", GREY, font(12 * FINE), anchor="rs")
    for number, curve in enumerate(curves.values()):
        plot.line(sorted(curve), COLOURS[number % len(COLOURS)])
    return plot.block.reduce(FINE)


def legend_block(names: Sequence[str]) -> Image.Image:
    """The names of curves in their colours."""
    block = Image.new("RGB", (SIDE, 24 + 22 * len(names)), PAPER)
    draw = ImageDraw.Draw(block)
    for number, name in enumerate(names):
        y = 12 + 22 * number
        draw.line((0, y, 24, y), COLOURS[number % len(COLOURS)], 3)
        draw.text((32, y), name, INK, font(13), anchor="lm")
    return block


def _plot(title: str, axes: tuple[str, str], points: Sequence[tuple[float, float]]) -> _Plot:
    """A plot with its axes, on which all points have room."""
    block = Image.new("RGB", (SIDE * FINE, HEIGHT * FINE), PAPER)
    draw = ImageDraw.Draw(block)
    (left, right), (low, high) = (_range([point[i] for point in points]) for i in range(2))
    x = Axis(left, right, LEFT * FINE, (SIDE - RIGHT) * FINE)
    y = Axis(low, high, (HEIGHT - BOTTOM) * FINE, TOP * FINE)
    draw.text((0, 0), title, INK, font(18 * FINE))
    for tick in ticks(low, high):
        draw.line((x.start, y(tick), x.end, y(tick)), LIGHT, FINE)
        draw.text((x.start - 6 * FINE, y(tick)), f"{tick:.4g}", GREY, font(12 * FINE), anchor="rm")
    for tick in ticks(left, right):
        draw.text((x(tick), y.start + 5 * FINE), f"{tick:.4g}", GREY, font(12 * FINE), anchor="ma")
    middle, bottom = (x.start + x.end) / 2, (HEIGHT - 8) * FINE
    draw.text((middle, bottom), axes[0], GREY, font(12 * FINE), anchor="ms")
    draw.text((x.end, (TOP - 10) * FINE), axes[1], GREY, font(12 * FINE), anchor="rs")
    return _Plot(block, draw, x, y)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A range with room on both sides; also of equal values."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - room, high + room
