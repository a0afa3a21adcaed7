"""Table, caption and figure of the image-to-image evaluation: one column per task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.evaluation.formats import fraction, significant
from jaxdiff.evaluation.plots import examples as plot
from jaxdiff.evaluation.protocols import Report
from jaxdiff.evaluation.settings import sampling_settings

ALL = "all"
"""Name of the column of all tasks together."""

DISTANCES = {
    "frechet": "Frechet distance",
    "frechet_generated": "Frechet, generated pixels",
    "spectrum": "spectrum distance",
    "error": "error, levels",
}
"""Label of each value that the baseline has as well."""

BELOW = {
    "frechet": [("- mean colour's over this", "baseline_over_frechet")],
    "frechet_generated": [("- mean colour's over this", "baseline_over_frechet_generated")],
    "error": [("- shuffled conditions", "shuffled_error"), ("- shuffled over right", "shuffled_over_error")],
}
"""Label and key of the values that follow each of `DISTANCES`."""


def table(tasks: Mapping[str, Any], hints: bool, several: bool) -> list[tuple[str, ...]]:
    """The values as strings: a column for each task.

    Args:
      tasks: by name, "n", the values of the "baseline", and those of the "samples" at each guidance scale.
      hints: whether hints were compared.
      several: whether there are several samples of each input.
    """
    columns = list(tasks.values())
    rows = [("", *tasks), ("test images", *(str(column["n"]) for column in columns))]

    def add(label: str, key: str, sample: int, format: Callable[[Any], str] = significant) -> None:
        rows.append((label, *(format(column["samples"][sample][key]) for column in columns)))

    guidances = [f"guidance {row['guidance']:g}" for row in columns[0]["samples"]]
    for key, label in DISTANCES.items():
        rows.append((f"{label}: mean colour", *(significant(column["baseline"][key]) for column in columns)))
        for i, guidance in enumerate(guidances):
            add(f"{label}: {guidance}", key, i)
            for below, below_key in BELOW.get(key, ()):
                add(below, below_key, i)
    for i, guidance in enumerate(guidances):
        if hints:
            add(f"hint error, levels: {guidance}", "hint_error", i)
            add("- shuffled conditions", "shuffled_hint_error", i)
    for i, guidance in enumerate(guidances):
        add(f"known pixels kept: {guidance}", "kept", i, fraction)
        if several:
            add(f"diversity, levels: {guidance}", "diversity", i)
    return rows


def caption(settings: Mapping[str, Any], keep_luma: Sequence[str], hints: bool) -> list[str]:
    """The settings under which the values hold."""
    lines = [
        f"{settings['n']} of {settings['test_images']} test images, {settings['features']}, seed {settings['seed']}",
        "error: RMS to the truth over the generated pixels; shuffled: with the conditions of another image",
        "hint error: RMS between the hint of a sample and the given hint" if hints else "",
        "mean colour: of the training images"
        + (f"; chroma alone for {', '.join(keep_luma)}" if keep_luma else ""),
        sampling_settings(settings),
    ]
    return [line for line in lines if line]


def scalars(tasks: Mapping[str, Any]) -> dict[str, float]:
    """The values of all tasks as ``evaluation/TASK/guidance_G/KEY``, for the logs of a training run."""
    return {
        f"evaluation/{name}/guidance_{row['guidance']:g}/{key}": float(value)
        for name, column in tasks.items()
        for row in column["samples"]
        for key, value in row.items()
        if key != "guidance" and value is not None
    }


def report(
    values: dict[str, Any],
    cells: Sequence[Sequence[str]],
    lines: Sequence[str],
    examples: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> Report:
    """The report with its figure."""
    image = plot.figure(examples, names, cells, lines, values["noise_losses"])
    return Report(values, cells, lines, image, scalars(values["tasks"]))
