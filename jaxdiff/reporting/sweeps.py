"""Sweeps on a page: the answer in words, Pareto fronts, curves over the guidance scale, and all settings."""

import dataclasses
import pathlib

from jaxdiff.errors import UserError
from jaxdiff.reporting.charts import Series, chart
from jaxdiff.reporting.evaluations import number
from jaxdiff.reporting.html import Html, details, element, joined, table
from jaxdiff.sweeps import stored
from jaxdiff.sweeps.measures import Figure
from jaxdiff.sweeps.report import SweepReport


def sweep(folder: pathlib.Path) -> Html:
    """The latest sweep of a folder; a sentence if it has no finished setting."""
    try:
        report = stored.read(folder)
    except UserError as error:
        return element("p", f"The sweep cannot be shown: {error.message}")
    answer = element("ul", *(element("li", line) for line in report.answer), class_="answer")
    charts = element("div", *_fronts(report), *_curves(report), *_averages(report), class_="charts")
    return joined([answer, charts, details(f"All {len(report.points)} settings", _settings(report))])


def _fronts(report: SweepReport) -> list[Html]:
    """For each trade-off, all settings as points, and the Pareto front as a line."""
    return [_front(report, name, axis, values) for name, (axis, values) in report.costs.items()]


def _front(report: SweepReport, name: str, axis: str, values: list[float]) -> Html:
    points = [(value, point.quality.value) for value, point in zip(values, report.points, strict=True)]
    labels = [
        f"{point.setting}: {report.quality.path} {y:.4g}, {axis} {x:.4g}"
        for point, (x, y) in zip(report.points, points, strict=True)
    ]
    chosen = sorted(
        (point, label) for point, label, best in zip(points, labels, report.fronts[name], strict=True) if best
    )
    series = [
        Series("all settings", points, labels, line=False, marks=True, colour=None),
        Series("Pareto front", [point for point, _ in chosen], [label for _, label in chosen], marks=True),
    ]
    return chart(f"Pareto front: {name}", (axis, report.quality.path), series)


def _curves(report: SweepReport) -> list[Html]:
    return [
        chart(
            found.title,
            ("guidance scale", ""),
            [
                Series(name, sorted(line), marks=True, colour=i)
                for i, (name, line) in enumerate(found.lines.items())
            ],
            None if found.level is None else ("real images", found.level),
        )
        for found in report.curves
    ]


def _averages(report: SweepReport) -> list[Html]:
    """Quality over the length of the average of the weights, a line for each other setting; nothing without lengths."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in report.points:
        if point.setting.ema is not None:
            name = str(dataclasses.replace(point.setting, ema=None))
            lines.setdefault(name, []).append((point.setting.ema, point.quality.value))
    series = [
        Series(name, sorted(line), marks=True, colour=i) for i, (name, line) in enumerate(lines.items())
    ]
    axes = ("EMA length, fraction of training", report.quality.path)
    return [chart(f"{report.quality.path} over the EMA length", axes, series)] if series else []


def _settings(report: SweepReport) -> Html:
    head = ("setting", report.quality.path, report.diversity.path, "NFE", "ms/sample", "Pareto fronts")
    rows = (
        (
            str(point.setting),
            _figure(point.quality),
            _figure(point.diversity),
            str(point.nfe),
            f"{1000 * point.seconds:.3g}",
            ", ".join(name for name, marks in report.fronts.items() if marks[i]),
        )
        for i, point in enumerate(report.points)
    )
    return element("div", table(head, rows, class_="values"), class_="wide")


def _figure(figure: Figure) -> Html:
    of = "" if figure.n is None else f" n = {figure.n}"
    return joined([number(figure.value), element("span", of, class_="n")])
