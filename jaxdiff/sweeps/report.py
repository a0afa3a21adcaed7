"""The report of a sweep: the answer in words, a table with Pareto fronts, and plots."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from jaxdiff.evaluation.plots.drawing import framed, side_by_side, stacked
from jaxdiff.evaluation.plots.tables import lookup
from jaxdiff.evaluation.plots.trade_offs import curves_block, front_block, legend_block
from jaxdiff.sweeps.collapse import Collapse
from jaxdiff.sweeps.measures import Figure, Measure, Point
from jaxdiff.sweeps.pareto import CHOICES, TRADE_OFFS, best_quality, front
from jaxdiff.sweeps.records import Record
from jaxdiff.sweeps.settings import Setting

JSON, FRONTS, COLLAPSE = "report.json", "pareto.png", "collapse.png"

CURVES = {"recall": "recall", "coverage": "coverage", "spread.minimum": "least class spread / real",
          "memorization.ratio": "distance to training set / test's"}  # fmt: skip
"""The paths of the values that are drawn over the guidance scale, and their titles."""

UNSEEN = {"memorization.ratio": 1.0}
"""Values of unseen real images, where those of training images say nothing: these are copies of themselves."""

MARKS = {"quality-diversity": "D", "quality-NFE": "N", "quality-seconds": "s"}
"""For each trade-off, the letter that marks settings of its front in the table."""


class Curves(NamedTuple):
    """A value over the guidance scale.

    Attributes:
      title: what the value is.
      lines: (guidance scale, value) of settings, by the measure against the loss of diversity.
      level: the value of real images, if there is one.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    level: float | None


@dataclasses.dataclass(frozen=True)
class SweepReport:
    """Recorded settings, compared.

    Attributes:
      records: of the settings.
      real: the record of real images.
      quality, diversity: the values that stand for them.
    """

    records: Sequence[Record]
    real: Record
    quality: Measure
    diversity: Measure

    @functools.cached_property
    def points(self) -> list[Point]:
        """The settings, in the order of `records`."""
        return [
            Point(
                setting_of(record),
                figure_of(record, self.quality),
                figure_of(record, self.diversity),
                record["nfe"],
                record["seconds_per_sample"],
            )
            for record in self.records
        ]

    @functools.cached_property
    def answer(self) -> list[str]:
        """What guidance costs, in words."""
        names = self.quality.path, self.diversity.path
        return Collapse(self.points, figure_of(self.real, self.diversity), *names).answer()

    @functools.cached_property
    def fronts(self) -> dict[str, list[bool]]:
        """For each trade-off, which settings are on its Pareto front."""
        return {name: front([pair(point) for point in self.points]) for name, pair in TRADE_OFFS.items()}

    def chosen(self, choice: str) -> Record:
        """The record of a choice, one of `CHOICES`."""
        points = self.points
        return self.records[points.index(CHOICES[choice](points))]

    def __str__(self) -> str:
        head = ("setting", self.quality.path, self.diversity.path, "NFE", "ms/sample", "front")
        real = [_shown(self.real, measure) for measure in (self.quality, self.diversity)]
        rows = [head, ("real images", *real, "-", "-", ""), *map(self._row, range(len(self.records)))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        marks = ", ".join(f"{mark}: {name}" for name, mark in MARKS.items())
        return "\n".join([*self.answer, "", *(line.rstrip() for line in lines), f"Pareto fronts: {marks}"])

    def _row(self, number: int) -> tuple[str, ...]:
        point, fronts = self.points[number], self.fronts
        marks = "".join(MARKS[name] if fronts[name][number] else "." for name in MARKS)
        return (
            str(point.setting),
            f"{point.quality.value:.3f}",
            f"{point.diversity.value:.3f}",
            str(point.nfe),
            f"{1000 * point.seconds:.3g}",
            marks,
        )

    def write(self, folder: pathlib.Path, facts: Mapping[str, Any]) -> None:
        """Write the report into a folder, with further facts."""
        values = {
            "answer": self.answer,
            "quality": self.quality._asdict(),
            "diversity": self.diversity._asdict(),
            "fronts": {name: self._keys(marks) for name, marks in self.fronts.items()},
            "choices": {name: self.chosen(name)["key"] for name in CHOICES},
            **facts,
        }
        _write(folder / JSON, (json.dumps(values, indent=1) + "\n").encode())
        self._fronts().save(folder / FRONTS)
        self._curves().save(folder / COLLAPSE)

    def _level(self, path: str) -> float | None:
        """The value of real images."""
        return UNSEEN.get(path, lookup(self.real["values"], path))

    def _keys(self, marks: Sequence[bool]) -> list[str]:
        return [record["key"] for record, on_front in zip(self.records, marks, strict=True) if on_front]

    @property
    def costs(self) -> dict[str, tuple[str, list[float]]]:
        """For each trade-off, the name of what stands against quality, and its value for each setting."""
        points = self.points
        return {
            "quality-diversity": (self.diversity.path, [point.diversity.value for point in points]),
            "quality-NFE": ("NFE", [float(point.nfe) for point in points]),
            "quality-seconds": ("milliseconds per sample", [1000 * point.seconds for point in points]),
        }

    @property
    def curves(self) -> list[Curves]:
        """Values over the guidance scale, with the sampler and the steps of the best setting."""
        family = best_quality(self.points).setting.family
        records = [record for record in self.records if setting_of(record).family == family]
        measures = list(dict.fromkeys(setting_of(record).measure for record in records))
        titles = {self.quality.path: self.quality.path, **CURVES}
        return [
            Curves(
                titles[path],
                {name or "guidance alone": line for name, line in found.items()},
                self._level(path),
            )
            for path in titles
            if (found := _curves_of(records, measures, path))
        ]

    def _fronts(self) -> Image.Image:
        quality, fronts = [point.quality.value for point in self.points], self.fronts
        blocks = [
            front_block(name, (axis, self.quality.path), list(zip(found, quality, strict=True)), fronts[name])
            for name, (axis, found) in self.costs.items()
        ]
        return framed(side_by_side(blocks))

    def _curves(self) -> Image.Image:
        """The curves, three in a row, and their names."""
        found = self.curves
        blocks = [curves_block(each.title, ("guidance scale", ""), each.lines, each.level) for each in found]
        rows = [side_by_side(blocks[i : i + 3]) for i in range(0, len(blocks), 3)]
        return framed(stacked([*rows, legend_block(list(found[0].lines))]))


def setting_of(record: Record) -> Setting:
    """The setting of a record."""
    return Setting(**record["setting"])


def _curves_of(records: Sequence[Record], measures: Sequence[str], path: str) -> dict[str, list]:
    """For each measure, (guidance scale, value) of its settings; empty if a setting has no such value."""
    found: dict[str, list] = {name: [] for name in measures}
    for record in records:
        setting, value = setting_of(record), _value(record, path)
        if value is None:
            return {}
        found[setting.measure].append((setting.guidance or 0.0, value))
    return found


def figure_of(record: Record, measure: Measure) -> Figure:
    """The value of a measure in a record."""
    return Figure(float(_value(record, measure.path)), record["counts"].get(measure.path), measure.higher)


def _shown(record: Record, measure: Measure) -> str:
    return f"{float(_value(record, measure.path)):.3f}"


def _value(record: Record, path: str) -> Any:
    """A value at the number of real images where it depends on the number."""
    value = lookup(record.get("equal", {}), path)
    return lookup(record["values"], path) if value is None else value


def _write(file: pathlib.Path, data: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(data)
    part.replace(file)
