"""The report page of runs: one HTML file that needs no network, no server and no script."""

import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Sequence

import jaxdiff
from jaxdiff.reporting import evaluations, sweeps, training
from jaxdiff.reporting.html import Html, details, element, joined, table
from jaxdiff.reporting.run_files import RunFiles, differing, fields, sweep_folders
from jaxdiff.reporting.style import CSS

MANY = 40
"""Differences between configs; more of them are shown on a click."""

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "pillow")
"""Libraries whose versions the page states."""


def page(runs: Sequence[RunFiles], further: Sequence[pathlib.Path] = ()) -> str:
    """The page of some runs, in UTF-8.

    Args:
      runs: with different names.
      further: folders of sweeps outside the runs' folders.
    """
    title = f"jaxdiff: {', '.join(run.name for run in runs)}"
    parts = {
        "Runs": _facts(runs),
        "Config": _configs(runs),
        "Training": training.curves(runs),
        "Samples": _of_each(runs, training.grids),
        "Evaluation": _evaluations(runs),
        "Sweeps": _sweeps(runs, further),
    }
    links = (element("a", name, href=f"#{name.lower()}") for name in parts)
    sections = (
        element("section", element("h2", name), body, id=name.lower()) for name, body in parts.items()
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(CSS)),
    )
    body = element("body", element("h1", title), element("nav", *links), *sections)
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _of_each(runs: Sequence[RunFiles], show: Callable[[RunFiles], Html]) -> Html:
    """A part of each run, under its name."""
    return joined(
        element("div", element("h3", run.name), or_sentence(lambda run=run: show(run))) for run in runs
    )


def or_sentence(show: Callable[[], Html]) -> Html:
    """A part of the page, or a sentence where a file has values of another kind than jaxdiff writes."""
    try:
        return show()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return element("p", f"This cannot be shown, its file is damaged: {type(error).__name__}: {error}")


def _facts(runs: Sequence[RunFiles]) -> Html:
    """Names, folders, steps, versions and hashes."""
    rows = [
        ("folder", *(str(run.folder) for run in runs)),
        ("steps", *(_steps(run) for run in runs)),
        ("checkpoints", *(", ".join(map(str, run.checkpoints)) or "none" for run in runs)),
        ("jaxdiff of the evaluation", *(_stated(run, "version") for run in runs)),
        ("weights of the evaluation", *(_stated(run, "weights") for run in runs)),
        *(
            (file, *(_record(run, file) for run in runs))
            for file in ("data.json", "frozen.json", "classes.json")
        ),
    ]
    absent = (element("li", f"{run.name}: {sentence}") for run in runs for sentence in run.absent)
    made = f"This page was made by jaxdiff {jaxdiff.__version__}, {', '.join(_versions())}."
    note = f"{made} Runs store no versions of libraries."
    listed = element(
        "div", table(["run", *(run.name for run in runs)], rows, class_="settings"), class_="wide"
    )
    return joined([listed, element("ul", *absent), element("p", note)])


def _versions() -> list[str]:
    """The installed libraries with their versions."""
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # an installation may name it otherwise
            continue
    return found


def _steps(run: RunFiles) -> str:
    """The last logged step, and the number of steps of the config."""
    logged = run.rows[-1]["step"] if run.rows else 0
    return f"{logged} logged of {run.config.get('steps', 'none')}"


def _stated(run: RunFiles, name: str) -> str:
    """What an evaluation states about itself."""
    found = evaluations.columns(run.evaluation or {}).values()
    values = dict.fromkeys(str(column["conditions"].get(name)) for column in found if "conditions" in column)
    return ", ".join(value for value in values if value != "None") or "not stated"


def _record(run: RunFiles, file: str) -> str:
    """A small record of a run as text."""
    return json.dumps(run.records[file]) if file in run.records else "none"


def _configs(runs: Sequence[RunFiles]) -> Html:
    """What differs between the runs, and the whole config of each."""
    changed = differing(runs)
    rows = ((path, *(element("mark", _value(value)) for value in values)) for path, values in changed.items())
    head = ["field", *(run.name for run in runs)]
    listed = element("div", table(head, rows, class_="settings"), class_="wide")
    first = [_differences(changed, listed)] if len(runs) > 1 else []
    return joined([*first, *(_config(run, changed) for run in runs)])


def _differences(changed: dict[str, list], listed: Html) -> Html:
    """The table of what differs; a long one is shown on a click."""
    if not changed:
        return element("p", "The configs of all runs are equal.")
    if len(changed) > MANY:
        return details(f"{len(changed)} fields that differ", listed)
    return joined([element("h3", "What differs"), listed])


def _config(run: RunFiles, changed: dict[str, list]) -> Html:
    """All fields of a config. Fields that differ between runs are marked."""
    rows = (
        (path, element("mark", _value(value)) if _is_changed(path, changed) else _value(value))
        for path, value in fields(run.config).items()
    )
    return details(f"Config of {run.name}", table(["field", "value"], rows, class_="settings"))


def _is_changed(path: str, changed: dict[str, list]) -> bool:
    return any(path == other or path.startswith((f"{other}.", f"{other}[")) for other in changed)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _evaluations(runs: Sequence[RunFiles]) -> Html:
    """Comparable runs side by side, and the evaluation of each."""
    with_samples = [run for run in runs if run.evaluation and run.evaluation.get("samples")]
    side_by_side = or_sentence(lambda: evaluations.compared(runs))
    compared = [element("h3", "Side by side"), side_by_side] if len(with_samples) > 1 else []
    return joined([*compared, _of_each(runs, evaluations.evaluation)])


def _sweeps(runs: Sequence[RunFiles], further: Sequence[pathlib.Path]) -> Html:
    """The sweeps of all runs, and those of other folders."""
    inside = [(f"{run.name}/{folder.name}", folder) for run in runs for folder in sweep_folders(run)]
    known = {folder.resolve() for _, folder in inside}
    outside = [(str(folder), folder) for folder in further if folder.resolve() not in known]
    found = [
        joined([element("h3", name), or_sentence(lambda folder=folder: sweeps.sweep(folder))])
        for name, folder in (*inside, *outside)
    ]
    text = "No run has a sweep: jaxdiff.sweep makes one, and --sweep shows one of another folder."
    return joined(found) if found else element("p", text)
