"""The headline of a report in words: what a terminal prints and the picture shows."""

from collections.abc import Mapping
from typing import Any


def figures(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The headline as rows of words: a name, the yardstick's value, and one value for each guidance."""
    yardstick, samples = report["yardstick"], report["samples"]
    k = report["k"]
    names = {
        "accuracy": "accuracy of the asked class",
        "frechet": "Frechet distance to test",
        "precision": f"precision (k={k})",
        "recall": f"recall (k={k})",
        "density": f"density (k={k})",
        "coverage": f"coverage (k={k})",
    }
    rows = [("", "real", *(f"guidance {row['guidance']:g}" for row in samples))]
    rows += [
        (label, *(_number(row[name]) for row in (yardstick, *samples)))
        for name, label in names.items()
        if yardstick[name] is not None
    ]
    for name in ("recall", "coverage"):
        rows.append((f"{name} / real", "1", *(_number(row["over_yardstick"][name]) for row in samples)))
    spread = [_number(row["spread"]["minimum"]) for row in (yardstick, *samples)]
    rows.append(("least class spread / real", *spread))
    for name, label in (("ratio", "distance to training set / test's"), ("exact_copies", "exact copies")):
        rows.append((label, *(_number(row["memorisation"][name]) for row in (yardstick, *samples))))
    if report["likelihood"] is not None:
        bits = _number(report["likelihood"]["bits_per_dim"])
        rows.append(
            ("bits/dim of test images", "-", *(bits if row["guidance"] == 1 else "-" for row in samples))
        )
    return rows


def caption(report: Mapping[str, Any]) -> list[str]:
    """Under which conditions the figures hold, in a few lines."""
    conditions = report["samples"][0]["conditions"]
    known = ("n", "guidance", "seed", "features", "quantisation", "judge", "test", "train", "version")
    made = [
        f"{name} {_short(value)}"
        for name, value in conditions.items()
        if name not in known and isinstance(value, str | int | float)
    ]
    lines = [
        f"{conditions['n']} samples against {report['test_images']} test images, {conditions['features']}, "
        f"seed {conditions['seed']}",
        f"real: {report['yardstick']['conditions']['n']} training images, scored in the same way",
    ]
    if report["judge_accuracy_on_test"] is not None:
        lines.append(f"judge: {_number(report['judge_accuracy_on_test'])} right on the test images")
    if made:
        lines.append(", ".join(made))
    likelihood = report["likelihood"]
    if likelihood is not None:
        lines.append(
            f"bits/dim: standard error {_number(likelihood['standard_error'])}, {likelihood['n']} test images, "
            f"seed {likelihood['seed']}, {likelihood['method']}"
        )
    return lines


def _number(value: float | None) -> str:
    """Three figures after the point, or four in all for what is large."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
