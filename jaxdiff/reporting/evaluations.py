"""Evaluations on a page: values with numbers of images and intervals, settings, and comparable runs side by side."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdiff.errors import UserError
from jaxdiff.evaluation.plots.tables import lookup
from jaxdiff.evaluation.reports import comparison
from jaxdiff.reporting.charts import Series, chart
from jaxdiff.reporting.html import Html, details, element, image, joined, table
from jaxdiff.reporting.run_files import FIGURE, RunFiles, png

Column = Mapping[str, Any]

NOT_COLUMNS = ("noise_losses",)
"""Parts of a report that have no values of images."""

OF_ALL = "correct.all"
"""The value of scenes that the interval beside it belongs to."""


def evaluation(run: RunFiles) -> Html:
    """The last evaluation of a run: its values, its settings, losses by noise level, and its figure."""
    report = run.evaluation
    if report is None:
        return element("p", f"{run.name} has no evaluation.")
    found = columns(report)
    parts = [_values(found), _settings(found), *_losses(run, report), *_figure(run)]
    return joined([*parts, details("The whole report", element("pre", json.dumps(report, indent=1)))])


def columns(report: Mapping[str, Any]) -> dict[str, Column]:
    """The sets of images of a report, each with its values, by name."""
    found: dict[str, Column] = {}
    for name, part in report.items():
        if isinstance(part, Mapping) and name not in NOT_COLUMNS:
            found[name.replace("_", " ")] = _sound(part)
        elif isinstance(part, list):
            found |= {_name(column): column for column in map(_sound, part) if column}
    return found


def _sound(part: Any) -> Column:
    """A set of images without damaged conditions; empty if it is none."""
    if not isinstance(part, Mapping):
        return {}
    damaged = not isinstance(part.get("conditions", {}), Mapping)
    return {name: value for name, value in part.items() if not (damaged and name == "conditions")}


def compared(runs: Sequence[RunFiles]) -> Html:
    """The values of all runs whose reports are comparable with the first one's; the others are refused in words."""
    first, *others = [run for run in runs if run.evaluation and run.evaluation.get("samples")]
    refused = {run.name: reason for run in others if (reason := refusal(first, run))}
    same = [first, *(run for run in others if run.name not in refused)]
    sentences = [element("p", f"Not compared: {text}", class_="refused") for text in refused.values()]
    if len(same) < 2:
        return joined(
            [*sentences, element("p", f"No other run has figures that are comparable with {first.name}'s.")]
        )
    return joined([*sentences, _side_by_side(same)])


def refusal(a: RunFiles, b: RunFiles) -> str | None:
    """Why the figures of two runs cannot be compared, in words; None if they can."""
    try:
        settings = [comparison.settings_of(run.evaluation or {}) for run in (a, b)]
        comparison.check(*settings, (a.name, b.name))
        return None
    except UserError as error:
        return error.message


def n_of(column: Column, path: str) -> Any:
    """The number of images of a value where the report states one for it; a dictionary where there are several."""
    group = path.partition(".")[0]
    own = [column.get(f"{path}_n"), column.get(f"{group}_n"), lookup(column, f"{group}.n")]
    shared = [part.get("n") for part in _groups(column) if path in (part.get("intervals") or {})]
    return next((n for n in (*own, *shared) if n is not None), None)


def interval_of(column: Column, path: str) -> list[float] | None:
    """The confidence interval of a value; None where the report has none."""
    found = lookup(column, "interval")
    if path == OF_ALL and isinstance(found, Mapping):
        return [found["low"], found["high"]]
    group, _, name = path.rpartition(".")
    if name == "value":
        return lookup(column, f"{group}.interval")
    of_groups = [(part.get("intervals") or {}).get(path) for part in _groups(column)]
    named = {
        f"{key}_{inner}": part
        for key in column
        if _is_group(key, column[key])
        for inner, part in column[key].items()
    }
    return next((found for found in (*of_groups, named.get(f"{path}_interval")) if found is not None), None)


def number(value: float) -> Html:
    """A number in four digits, with all of them for programs."""
    return element("data", f"{value:.4g}", value=repr(value))


def _name(column: Column) -> str:
    return (
        f"guidance {column['guidance']:g}" if isinstance(column.get("guidance"), int | float) else "samples"
    )


def _groups(column: Column) -> list[Mapping[str, Any]]:
    return [part for key, part in column.items() if _is_group(key, part)]


def _is_group(key: str, part: Any) -> bool:
    return isinstance(part, Mapping) and key != "conditions"


def _values(found: Mapping[str, Column]) -> Html:
    """A row for each value and a cell for each set of images."""
    return _table(found, _paths(found.values()))


def _table(found: Mapping[str, Column], paths: Sequence[str]) -> Html:
    """A row for each path, and a column for each set of images with the number of its images."""
    images = {name: lookup(column, "conditions.n") for name, column in found.items()}
    head = (name if n is None else f"{name} (n = {n})" for name, n in images.items())
    rows = ([path, *(_cell(column, path) for column in found.values())] for path in paths)
    return element("div", table(["value", *head], rows, class_="values"), class_="wide")


def _paths(found: Any) -> list[str]:
    """The names of all values, in the order of the first column that has them."""
    every = dict.fromkeys(path for column in found for path, _ in comparison.numbers(column))
    return [path for path in every if not path.startswith("interval.")]


def _cell(column: Column, path: str) -> Html:
    value = lookup(column, path)
    if value is None:
        return Html("–")
    parts = [number(value)]
    interval, n = interval_of(column, path), n_of(column, path)
    if interval is not None:
        low, high = interval
        parts.append(element("span", " [", number(low), ", ", number(high), "]", class_="interval"))
    if n is not None:
        parts.append(element("span", f" n = {_counts(n)}", class_="n"))
    return joined(parts)


def _counts(n: Any) -> str:
    """Numbers of images, such as ``1000 / 297``: samples and reference."""
    return " / ".join(map(str, n.values())) if isinstance(n, Mapping) else str(n)


def _settings(found: Mapping[str, Column]) -> Html:
    """The settings under which the values hold: what all columns share, and what they do not."""
    stated = {name: column["conditions"] for name, column in found.items() if "conditions" in column}
    names = list(dict.fromkeys(name for conditions in stated.values() for name in conditions))
    rows = ([name, *(_setting(conditions.get(name)) for conditions in stated.values())] for name in names)
    listed = element("div", table(["setting", *stated], rows, class_="settings"), class_="wide")
    return details("Settings: sampler, NFE, guidance, profile, hashes", listed)


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value)


def _losses(run: RunFiles, report: Mapping[str, Any]) -> list[Html]:
    """The losses on training and test images by log-SNR."""
    losses = report.get("noise_losses")
    if not isinstance(losses, Mapping):
        return []
    series = [
        Series(name, sorted(zip(losses["log_snr"], losses[name], strict=True)), colour=i)
        for i, name in enumerate(("train", "test"))
    ]
    return [element("div", chart(f"loss by log-SNR, {run.name}", ("log-SNR", ""), series), class_="charts")]


def _figure(run: RunFiles) -> list[Html]:
    file = run.folder / FIGURE
    if not file.exists():
        return []
    data = png(file)
    if data is None:
        return [element("p", f"{FIGURE} is damaged and left out.")]
    caption = element("figcaption", "The figure of the evaluation: samples, and what they are compared with.")
    return [details("Figure", element("figure", image(data, f"evaluation of {run.name}"), caption))]


def _side_by_side(runs: Sequence[RunFiles]) -> Html:
    """The values that all runs have, one column for each run and guidance scale."""
    found = {
        f"{run.name}, {_name(column)}": column
        for run in runs
        for column in (run.evaluation or {}).get("samples", ())
    }
    shared = [
        path for path in _paths(found.values()) if all(lookup(c, path) is not None for c in found.values())
    ]
    return _table(found, shared)
