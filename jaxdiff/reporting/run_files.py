"""The files of a run's folder, as far as they exist: a part that is absent or damaged is a sentence."""

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from jaxdiff import config as configs
from jaxdiff.config.blocks import TARGET
from jaxdiff.config.files import plain
from jaxdiff.errors import expect
from jaxdiff.runs.workdir import read_config
from jaxdiff.sweeps.records import LINES

METRICS, EVALUATION, FIGURE = "metrics.jsonl", "evaluation.json", "evaluation.png"
HASHED = ("data.json", "frozen.json", "classes.json")
"""Files of a run that say what it was made of."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run's folder.

    Attributes:
      name: of the run, different from those of the other runs of a page.
      folder: where it is.
      config: the stored config as dictionaries, lists and plain values.
      rows: of the log, in order; a value of None was not finite.
      evaluation: the last report of an evaluation; None without one.
      records: by name of the file, what says of which data and weights the run was made.
      checkpoints: the steps with a checkpoint, in order.
      absent: sentences about parts that are not there or cannot be read.
    """

    name: str
    folder: pathlib.Path
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None
    records: Mapping[str, Any]
    checkpoints: Sequence[int]
    absent: Sequence[str]


def read_runs(workdirs: Sequence[str]) -> list[RunFiles]:
    """The runs in some folders, under different names.

    Raises:
      UserError: a folder holds no run, or is given twice.
    """
    folders = [pathlib.Path(workdir).expanduser().resolve() for workdir in workdirs]
    twice = next((str(folder) for folder in folders if folders.count(folder) > 1), None)
    expect(twice is None, "--workdir", twice, "different folders", "give each once", "one folder twice")
    return [_read(workdir, name) for workdir, name in zip(workdirs, names(folders), strict=True)]


def names(folders: Sequence[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, all with as many parts."""
    longest = max(len(folder.parts) for folder in folders)
    for parts in range(1, longest + 1):
        found = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(found)) == len(found):
            return found
    return [str(folder) for folder in folders]


def sample_grids(run: RunFiles) -> list[pathlib.Path]:
    """The sample grids of training, in the order of their steps."""
    folder = run.folder / "samples"
    found = folder.glob("*.png") if folder.is_dir() else ()
    return sorted((path for path in found if path.stem.isdecimal()), key=lambda path: int(path.stem))


def sweep_folders(run: RunFiles) -> list[pathlib.Path]:
    """The folders of sweeps inside the run's folder."""
    return sorted(path.parent for path in run.folder.glob(f"*/{LINES}"))


def png(path: pathlib.Path) -> bytes | None:
    """The bytes of an image, if it can be decoded."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
        return data
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for damaged files
        return None


def differing(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """The fields in which the configs of runs differ, by path, and the value of each run; "absent" where none is."""
    paths = {path: None for run in runs[1:] for path in configs.differences(runs[0].config, run.config)}
    found = {path: [_at(run.config, path) for run in runs] for path in paths}
    return {path: values for path, values in found.items() if any(value != values[0] for value in values)}


def fields(config: Any, path: str = "") -> dict[str, Any]:
    """The fields of a config by path; empty blocks and lists are values."""
    if isinstance(config, Mapping) and config:
        parts = {f"{path}.{name}" if path else name: value for name, value in config.items()}
    elif isinstance(config, list) and config and any(isinstance(item, Mapping) for item in config):
        parts = {f"{path}[{i}]": value for i, value in enumerate(config)}
    else:
        return {path: config}
    return {inner: value for name, part in parts.items() for inner, value in fields(part, name).items()}


def _at(config: Any, path: str) -> Any:
    """The value at a path, or "absent"; of a block its class."""
    found: Any = config
    for word in path.replace("[", ".[").split("."):
        if word.startswith("["):
            number = int(word[1:-1])
            found = found[number] if isinstance(found, list) and number < len(found) else "absent"
        else:
            found = found.get(word, "absent") if isinstance(found, Mapping) else "absent"
    return found.get(TARGET, found) if isinstance(found, Mapping) else found


def _read(workdir: str, name: str) -> RunFiles:
    config = plain(read_config(workdir))
    folder = pathlib.Path(workdir).expanduser().resolve()
    absent: list[str] = []
    rows = _rows(folder / METRICS, absent)
    evaluation = _json(folder / EVALUATION, absent)
    if evaluation is None and not (folder / EVALUATION).exists():
        absent.append("The run has no evaluation: jaxdiff.evaluate makes one.")
    records = {file: _json(folder / file, absent) for file in HASHED}
    kept = {file: value for file, value in records.items() if value is not None}
    return RunFiles(name, folder, config, rows, evaluation, kept, _checkpoints(folder), absent)


def _rows(file: pathlib.Path, absent: list[str]) -> list[Mapping[str, Any]]:
    """The rows of a log. One that is cut off or damaged is left out, and counted."""
    if not file.exists():
        absent.append(f"The run has no {METRICS}: nothing was logged yet.")
        return []
    lines = file.read_bytes().decode(errors="replace").splitlines()
    found = [row for row in map(_row, lines) if row is not None]
    if len(found) < len(lines):
        absent.append(f"{METRICS}: {len(lines) - len(found)} of {len(lines)} rows are damaged and left out.")
    return sorted(found, key=lambda row: row["step"])


def _row(line: str) -> Mapping[str, Any] | None:
    """A row of a log; None unless it has a step, and otherwise numbers and null."""
    try:
        row = json.loads(line)
        sound = isinstance(row["step"], int) and all(map(_is_logged, row.values()))
        return row if sound else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _is_logged(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _json(file: pathlib.Path, absent: list[str]) -> Any:
    """The object in a JSON file; None if there is none, with a sentence if the file is damaged."""
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
        if isinstance(found, dict):
            return found
    except (OSError, ValueError, RecursionError):
        pass
    absent.append(f"{file.name} is damaged and left out.")
    return None


def _checkpoints(folder: pathlib.Path) -> list[int]:
    there = folder / "checkpoints"
    return (
        sorted(int(path.name) for path in there.iterdir() if path.name.isdecimal()) if there.is_dir() else []
    )


def check_sweep(folder: str) -> pathlib.Path:
    """The folder of a sweep; raises `UserError` if it is none."""
    path = pathlib.Path(folder).expanduser().resolve()
    fix = "give the --out of a jaxdiff.sweep"
    expect((path / LINES).is_file(), "--sweep", folder, f"a folder with {LINES}", fix, "none")
    return path
