"""Charts as inline SVG: curves and points on two axes, with a title for each point and no script."""

import dataclasses
import math
from collections.abc import Sequence

from jaxdiff.evaluation.plots.drawing import Axis, decades, ticks
from jaxdiff.reporting.html import Html, element, joined

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 250, 56, 14, 14, 40
SPREAD = 20
"""An axis of positive values is logarithmic if the largest is more than this many times the smallest."""

MOST = 1000
"""Points of a curve; a longer one is drawn by the least and the greatest value of each part."""

COLOURS = 8
"""Number of colours in the style sheet; further curves begin with the first again."""

Points = Sequence[tuple[float, float | None]]


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
      name: in the legend; empty for none.
      points: (x, y); a y of None interrupts the line.
      labels: a text for each point, shown beside the pointer; empty for its coordinates.
      line, marks: whether the points are joined, and whether each is marked.
      colour: number of the colour; None for grey.
    """

    name: str
    points: Points
    labels: Sequence[str] = ()
    line: bool = True
    marks: bool = False
    colour: int | None = 0

    @property
    def style(self) -> str:
        """The class in the style sheet."""
        return "grey" if self.colour is None else f"colour-{self.colour % COLOURS}"


@dataclasses.dataclass(frozen=True)
class _Scales:
    x: Axis
    y: Axis
    logarithmic: bool

    def place(self, x: float, y: float) -> tuple[float, float]:
        return round(self.x(float(x)), 2), round(self.y(math.log10(y) if self.logarithmic else float(y)), 2)


def chart(
    title: str, axes: tuple[str, str], series: Sequence[Series], level: tuple[str, float] | None = None
) -> Html:
    """A figure of series, with a legend if they have names.

    Args:
      axes: names of the horizontal and the vertical axis.
      level: name and value of a horizontal line.
    """
    drawn = [
        dataclasses.replace(each, points=thinned(each.points)) if not each.labels else each for each in series
    ]
    found = [(x, y) for each in drawn for x, y in each.points if y is not None]
    if not found:
        return element("figure", element("figcaption", f"{title}: no finite value"), class_="chart")
    scales = _scales(found, None if level is None else level[1])
    parts = [*_grid(scales, axes), *_level(scales, level), *(_drawn(each, scales) for each in drawn)]
    picture = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return element("figure", element("figcaption", title), picture, legend(series), class_="chart")


def legend(series: Sequence[Series]) -> Html:
    """The names of series in their colours; nothing where none has a name."""
    items = (element("li", each.name, class_=each.style) for each in series if each.name)
    listed = joined(items)
    return element("ul", listed, class_="legend") if listed else Html("")


def thinned(points: Points) -> Points:
    """At most `MOST` points, and no peak is lost: the least and the greatest of each part stay, and so do gaps."""
    if len(points) <= MOST:
        return points
    size = math.ceil(len(points) / (MOST // 2))
    parts = (points[start : start + size] for start in range(0, len(points), size))
    return [point for part in parts for point in _extremes(part)]


def _extremes(part: Points) -> Points:
    """The points of least and greatest y, in order; the first gap instead, if there is one."""
    gap = next((point for point in part if point[1] is None), None)
    if gap is not None:
        return [gap]
    order = sorted(range(len(part)), key=lambda i: part[i][1] or 0.0)
    return [part[i] for i in sorted({order[0], order[-1]})]


def _scales(points: Sequence[tuple[float, float]], level: float | None) -> _Scales:
    values = [y for _, y in points] + ([] if level is None else [level])
    logarithmic = min(values) > 0 and max(values) > SPREAD * min(values)
    (left, right), (low, high) = (
        _range([x for x, _ in points]),
        _range([math.log10(value) if logarithmic else value for value in values]),
    )
    return _Scales(Axis(left, right, LEFT, WIDTH - RIGHT), Axis(low, high, HEIGHT - BOTTOM, TOP), logarithmic)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A range with room on both sides; also of equal values."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _grid(scales: _Scales, axes: tuple[str, str]) -> list[Html]:
    """The lines and the numbers of both axes, and their names."""
    x, y = scales.x, scales.y
    rows = decades(y.low, y.high) if scales.logarithmic else ticks(y.low, y.high)
    found = []
    for tick in rows:
        height, value = round(y(tick), 2), 10.0 ** min(max(tick, -307), 307) if scales.logarithmic else tick
        found.append(element("line", x1=x.start, x2=x.end, y1=height, y2=height, class_="grid"))
        found.append(_text(f"{value:.4g}", x.start - 6, height + 4, "end"))
    found += [_text(_short(tick), round(x(tick), 2), y.start + 16, "middle") for tick in ticks(x.low, x.high)]
    found.append(_text(axes[0], (x.start + x.end) / 2, HEIGHT - 6, "middle"))
    return [*found, _text(axes[1], x.end, TOP - 3, "end")]


def _short(value: float) -> str:
    """A number of an axis: thousands and millions with a letter."""
    if abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value / 1e3:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"


def _text(text: str, x: float, y: float, anchor: str) -> Html:
    return element("text", text, x=x, y=y, text_anchor=anchor)


def _level(scales: _Scales, level: tuple[str, float] | None) -> list[Html]:
    if level is None:
        return []
    _, height = scales.place(0.0, level[1])
    line = element("line", x1=scales.x.start, x2=scales.x.end, y1=height, y2=height, class_="level")
    return [line, _text(level[0], scales.x.end, height - 4, "end")]


def _drawn(series: Series, scales: _Scales) -> Html:
    parts = [_line(series.points, scales)] if series.line else []
    if series.marks or len(series.points) == 1:
        parts += [_mark(series, i, scales) for i in range(len(series.points))]
    return element("g", *parts, class_=series.style)


def _line(points: Points, scales: _Scales) -> Html:
    """A line through points, with gaps."""
    commands, letter = [], "M"
    for x, y in points:
        if y is None:
            letter = "M"
            continue
        commands.append("{}{} {}".format(letter, *scales.place(x, y)))
        letter = "L"
    return element("path", d="".join(commands))


def _mark(series: Series, number: int, scales: _Scales) -> Html:
    x, y = series.points[number]
    if y is None:
        return Html("")
    label = series.labels[number] if series.labels else f"{x:g}, {y:.4g}"
    left, top = scales.place(x, y)
    return element("g", element("title", label), element("circle", cx=left, cy=top, r=3.5))
