"""Comparison of two reports: one table of their values, unless something makes the values incomparable."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from jaxdiff.errors import UserError, expect
from jaxdiff.evaluation.formats import significant
from jaxdiff.evaluation.protocols import line

FREE = frozenset({
    "seed", "guidance", "guidance_rule", "sampler", "grid", "steps", "step", "nfe", "reuse", "dtype", "weights",
    "version", "data", "reference_file", "train", "train_images",
})  # fmt: skip
"""Settings that may differ: they are what is compared, or change no value."""

FIRST = ("evaluation", "profile", "features", "features_hash", "reference", "test", "n")
"""Settings that must agree and are named first; so must all others that both reports have and `FREE` has not."""

DETAILS = frozenset({
    "conditions", "guidance", "by_class", "n_by_class", "by_k", "n", "worst_class", "least_class", "subset_size",
    "pairs", "left_out",
})  # fmt: skip
"""Parts of a report that are no rows of the table."""

Values = Mapping[str, Any]


def read(path: str | os.PathLike[str]) -> Values:
    """Read a report, ``evaluation.json``, or that of a run's folder.

    Raises:
      UserError: there is no such file, or another kind of file.
    """
    file = epath.Path(path).expanduser()
    file = file / "evaluation.json" if file.is_dir() else file
    fix = "give an evaluation.json, or a folder that has one"
    expect(file.exists(), "--compare", str(path), "a report of jaxdiff.evaluate", fix, "no such file")
    try:
        found = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise UserError(
            f"--compare={path}: expected a report of jaxdiff.evaluate, got {type(error).__name__}. Fix: {fix}"
        ) from None
    expect(_is_report(found), "--compare", str(path), "a report with columns of samples", fix, "another file")
    return found


def _is_report(found: Any) -> bool:
    """Whether a JSON value has columns of samples, with the types of what is read of them."""
    columns = found.get("samples") if isinstance(found, dict) else None
    if not isinstance(columns, list) or not columns or not all(isinstance(each, dict) for each in columns):
        return False
    settings = [each.get("conditions", {}) for each in (found, *columns)]
    scales = [each.get("guidance", 1.0) for each in columns]
    are_numbers = all(isinstance(scale, int | float) for scale in scales)
    return are_numbers and all(isinstance(each, dict) for each in settings)


def compare(a: Values, b: Values, names: tuple[str, str]) -> str:
    """Both reports as one text: settings that differ, then the values of both at each guidance scale.

    Args:
      names: of the reports, for messages.

    Raises:
      UserError: a setting that changes values differs; its name is the first word.
    """
    settings = settings_of(a), settings_of(b)
    check(*settings, names)
    lines = [f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)]
    for name in sorted(FREE & (set(settings[0]) | set(settings[1]))):
        pair = [found.get(name) for found in settings]
        if pair[0] != pair[1]:
            lines.append(f"{name}: A {_short(pair[0])}, B {_short(pair[1])}")
    return "\n".join([*lines, "", *map(line, table(a, b))])


def check(a: Values, b: Values, names: tuple[str, str] = ("A", "B")) -> None:
    """Raise `UserError` if settings that must agree do not; names the first of them.

    Settings of a metric that one report lacks do not count: its values are in no row of the table.
    """
    free = FREE - {"train"} if "train" in str(a.get("reference")) else FREE
    for name in (*FIRST, *sorted((set(a) & set(b)) - set(FIRST))):
        if name in free:
            continue
        expected = f"the {name} of {names[0]}, {_short(a.get(name))}"
        fix = f"evaluate both with one {name}"
        same = a.get(name) == b.get(name)
        expect(same, name, b.get(name), expected, fix, f"{_short(b.get(name))} in {names[1]}")


def table(a: Values, b: Values) -> Sequence[Sequence[str]]:
    """Values that both reports have, by name; one column for each report and guidance scale."""
    columns = {
        f"{letter} w={column['guidance']:g}" if "guidance" in column else letter: dict(numbers(column))
        for letter, report in (("A", a), ("B", b))
        for column in report["samples"]
    }
    first, *others = columns.values()
    shared = [name for name in first if all(name in column for column in others)]
    rows = ((name, *(significant(column[name]) for column in columns.values())) for name in shared)
    return [("", *columns), *rows]


def settings_of(report: Values) -> dict[str, Any]:
    """The settings under which the values of a report hold, by name."""
    column = report["samples"][0]
    kind = {"evaluation": report["evaluation"]} if "evaluation" in report else {}
    return {**kind, **report.get("conditions", {}), **column.get("conditions", {})}


def numbers(values: Values, path: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a column by path, names joined by dots."""
    for name, value in values.items():
        if name in DETAILS or name.endswith("_n"):
            continue
        if isinstance(value, Mapping):
            yield from numbers(value, f"{path}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{name}", value


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, dict) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
