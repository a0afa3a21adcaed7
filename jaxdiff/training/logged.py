"""What ``metrics.jsonl`` of a run holds: one JSON object in each row, with its step."""

import json
import math

from etils import epath


def logged_names(workdir: epath.PathLike, step: int) -> set[str]:
    """The names of the numbers that were logged at a step."""
    return {name for row in _rows(workdir) if step_of(row) == step for name in json.loads(row)}


def last_logged(workdir: epath.PathLike) -> int:
    """The last step that a run has logged; 0 without a log."""
    return max((int(step) for step in map(step_of, _rows(workdir)) if math.isfinite(step)), default=0)


def step_of(row: str) -> int | float:
    """The step of a row; infinity if the row is damaged, or cut because the process was killed."""
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def _rows(workdir: epath.PathLike) -> list[str]:
    file = epath.Path(workdir) / "metrics.jsonl"
    return file.read_bytes().decode(errors="replace").splitlines() if file.exists() else []
