"""The class table of a run: its file, and the table of a run that has none yet."""

import json
import logging
from collections.abc import Mapping

from etils import epath

from jaxdiff.data.classes import Names, listed, some, table_of
from jaxdiff.data.pipeline import Examples, Pipeline
from jaxdiff.data.text_files import read_json, read_text
from jaxdiff.errors import UserError, expect
from jaxdiff.runs.continuation import latest_step

_log = logging.getLogger(__name__)

FILE = "classes.json"
"""The file in a run's folder that gives the number of each class by its name."""


def read(workdir: epath.PathLike) -> Names | None:
    """The class table of a run; None for a run without classes, or of a version without tables.

    Raises:
      UserError: the file is no such table.
    """
    file = epath.Path(workdir).expanduser() / FILE
    if not file.exists():
        return None
    where, fix = f"--workdir={workdir}: {FILE}", "restore the file"
    table = read_json(read_text(file, where), where, fix)
    known = isinstance(table, Mapping) and all(type(number) is int for number in table.values())
    names = {number: name for name, number in table.items()} if known else {}
    fits = bool(names) and set(names) == set(range(len(table)))
    expect(
        fits, "--workdir", str(workdir), f"names with the numbers 0, 1, ... in {FILE}", fix, "other values"
    )
    return tuple(names[number] for number in range(len(names)))


def to_json(classes: Names) -> str:
    """The content of the file."""
    numbers = {name: number for number, name in enumerate(classes)}
    return json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"


def of_examples(examples: Examples, is_old: bool) -> Names | None:
    """The class table of a run that has none yet.

    Args:
      examples: of its training source.
      is_old: whether the run has learned labels before runs had tables. It keeps the numbers of that time.
    """
    old = getattr(examples, "classes_of_old_runs", None) if is_old else None
    return old or table_of(examples)


def of_run(workdir: epath.PathLike, data: Pipeline) -> Names | None:
    """The class table of a run, or of the training data if the run has none: of a version without tables."""
    folder = epath.Path(workdir).expanduser()
    return read(folder) or of_examples(data.source.open(), is_old=bool(latest_step(folder)))


def as_in(workdir: str, classes: Names, examples: Examples) -> Names:
    """The classes in the order of another run, whose parameters a new run starts from.

    Where the names differ, the order stays, and a warning says which rows of the other run begin other classes.

    Args:
      workdir: folder of the other run; without a table, it is taken to have learned the same classes.
      classes, examples: of the new run.
    """
    folder = epath.Path(workdir).expanduser()
    other = read(folder) or of_examples(examples, is_old=bool(latest_step(folder)))
    if other is None or other == classes:
        return classes
    if sorted(other) == sorted(classes):
        return other
    pairs = [f"{new} from {old}" for old, new in zip(other, classes, strict=False) if old != new]
    _log.warning("the classes differ from those of %s: labels start as %s", workdir, some(pairs))
    return classes


def check_unchanged(stored: Names, examples: Examples) -> None:
    """Raise `UserError` unless the training source still has the classes of a run's table, in any order."""
    found = table_of(examples) or ()
    gone = [name for name in stored if name not in found]
    new = [name for name in found if name not in stored]
    if gone or new:
        parts = [f"{what}: {some(names)}" for what, names in (("gone", gone), ("new", new)) if names]
        raise UserError(
            f"config.data.source: expected the classes that the run started with ({listed(stored)}), "
            f"got others ({'; '.join(parts)}). Fix: restore their names, or start a new run in another --workdir"
        )
