"""Windows of data that a run passes over after updates that are not finite, recorded in its folder.

The batch of a step is then that of a later position: a pure function of the step and of the recorded windows.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import RunFailure, reason
from jaxdiff.training.settings import Batches

FILE = "passed_over.json"


@dataclasses.dataclass(frozen=True)
class Window:
    """Batches that a run passes over.

    Attributes:
      step: steps before it, those of the checkpoint to which the run went back.
      batches: number of batches.
      first_skipped: first step of that pass whose update was skipped.
    """

    step: int
    batches: int
    first_skipped: int


def position(step: int, windows: Sequence[Window]) -> int:
    """The position in the order of the data, 0-based, of the batch that follows `step` steps."""
    return step + sum(window.batches for window in windows if window.step <= step)


def passing_over(batches: Batches, start: int, windows: Sequence[Window]) -> Iterator[Any]:
    """The batches of a run from a step on, without those of the windows."""
    later = sorted({window.step for window in windows if window.step > start})
    for first, last in itertools.pairwise([start, *later]):
        yield from itertools.islice(batches(position(first, windows)), last - first)
    yield from batches(position(max([start, *later]), windows))


def read(workdir: epath.Path) -> tuple[Window, ...]:
    """The windows that the run in a folder passes over, in the order in which they were found.

    Raises:
      RunFailure: the file is damaged.
    """
    file = workdir / FILE
    if not file.exists():
        return ()
    try:
        return tuple(Window(**row) for row in json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise RunFailure(
            f"{file}: expected the windows of data that the run passes over, got {reason(error)}. "
            "Fix: restore the file from a copy, or train anew with --restart"
        ) from None


def write(workdir: epath.Path, windows: Sequence[Window]) -> None:
    """Record the windows as a whole; of several processes the first one does. No window leaves no file."""

    def record() -> None:
        file = workdir / FILE
        if not windows:
            file.unlink(missing_ok=True)
            return
        draft = file.with_name(f".{FILE}.draft")
        draft.write_text(json.dumps([dataclasses.asdict(window) for window in windows], indent=1) + "\n")
        draft.replace(file)

    in_first(record, raises=OSError)
