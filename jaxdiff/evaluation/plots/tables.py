"""Tables of a report: one row per quantity, one column per set of images."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdiff.evaluation.metric import Metric, Row

RELATIVE = "relative"
"""Key of the values that are given as a fraction of the real images'."""


def rows_of(metrics: Sequence[Metric], relative: bool = True) -> list[Row]:
    """The table rows of all metrics; with `relative`, also the fractions of real values that they declare."""
    found: list[Row] = []
    for metric in metrics:
        rows = metric.table()
        found += rows
        if relative:
            formats = {row.key: row.format for row in rows}
            found += [Row(f"{name} / real", f"{RELATIVE}.{name}", formats[name]) for name in metric.relative]
    return found


def table(
    rows: Sequence[Row], columns: Mapping[str, Mapping[str, Any]], empty: bool = False
) -> list[tuple[str, ...]]:
    """Values as strings, under a head of column names.

    Args:
      rows: the quantities.
      columns: by name, the values of each set of images.
      empty: keep rows without any value.
    """
    found: list[tuple[str, ...]] = [("", *columns)]
    for row in rows:
        values = [lookup(column, row.key) for column in columns.values()]
        if empty or any(value is not None for value in values):
            found.append((row.label, *(row.format(value) for value in values)))
    return found


def lookup(values: Mapping[str, Any], key: str) -> Any:
    """The value at a path of names joined by dots; None where there is none."""
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def scalars(rows: Sequence[Row], columns: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The values of a table as ``evaluation/COLUMN/KEY``, for the logs of a training run."""
    found = {
        f"evaluation/{name}/{row.key}".replace(" ", "_"): lookup(column, row.key)
        for name, column in columns.items()
        for row in rows
    }
    return {name: float(value) for name, value in found.items() if value is not None}
