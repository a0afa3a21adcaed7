"""The folder of a run: its config, its classes and what its data are, written at the start and compared later."""

import contextlib
import copy
import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from jaxdiff import config as configs
from jaxdiff.config.blocks import TARGET
from jaxdiff.data.classes import Names, some
from jaxdiff.data.pipeline import contents_of
from jaxdiff.data.text_files import read_json, read_text
from jaxdiff.errors import UserError
from jaxdiff.runs import classes, continuation

if TYPE_CHECKING:
    from jaxdiff.experiment import Experiment

_log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"

HERE = "{workdir}/"
"""Begins the texts of a stored config that name a file in the run's own folder."""

FROZEN = "frozen"
"""The folder of a converted run's own weights."""

DATA_FILE = "data.json"
"""The file in a run's folder that says what its training examples are, wherever they lie."""

RECORDS = (CONFIG_FILE, classes.FILE, DATA_FILE)
"""Files of a run's folder of which each checkpoint has a copy."""


def init_workdir(
    config: Any, workdir: str, experiment: "Experiment | None" = None, new_schedule: bool = True
) -> epath.Path:
    """Create the folder of a run and store its config, or check that the run there has the same config.

    Everything is compared before anything is written.

    Args:
      config: of the run.
      workdir: the folder.
      experiment: of the config, for a run that is trained: its classes and its data are stored or compared as well.
      new_schedule: whether the user has named the schedule of the learning rate, for steps after the end of the run's.

    Returns:
      The folder.

    Raises:
      UserError: the folder holds a run with another config or other data (the error names the fields), its files are
        damaged, or it cannot be written.
    """
    check_not_converted(workdir)
    path = epath.Path(workdir).expanduser()
    with _errors_of_the_folder(workdir):
        path.mkdir(parents=True, exist_ok=True)
        step = continuation.latest_step(path)
        stored = None if step is None else read_config(workdir)
    if step is not None:
        continuation.check_config(stored, config, workdir, step, _has_data(path))
        config = _with_recipes(stored, config)
    files = {CONFIG_FILE: configs.to_json(config)}
    if experiment is not None:
        files |= _records(experiment, path, step)
    if step is not None:
        continuation.check_steps(stored, config, workdir, step, new_schedule)
    if step is not None and config.steps < step:
        return path  # nothing is trained: the records stay those of the checkpoints
    with _errors_of_the_folder(workdir):
        for name, content in files.items():
            _write(path / name, content)
    return path


def _with_recipes(stored: Any, config: Any) -> Any:
    """A config with the recipes that its run was given since, such as presets of sweeps."""
    kept = stored.get("recipes") or {}
    lost = {name: kept[name] for name in kept if name not in (config.get("recipes") or {})}
    if not lost:
        return config
    found = copy.deepcopy(config)
    with found.unlocked():
        found.recipes = {**(config.get("recipes") or {}), **lost}
    return found


def check_not_converted(workdir: epath.PathLike) -> None:
    """Raise `UserError` if a folder is that of a converted run: its weights are files of its own, not checkpoints."""
    path = epath.Path(workdir).expanduser()
    config = path / CONFIG_FILE
    with _errors_of_the_folder(str(workdir)):
        own = (path / FROZEN).exists() or (config.exists() and f'"{HERE}'.encode() in config.read_bytes())
        converted = own and continuation.latest_step(path) is None
    if converted:
        raise UserError(
            f"--workdir={workdir}: expected a new folder or a run that is trained, got a converted run. "
            f"Fix: give a new --workdir; --from-workdir {workdir} starts from it"
        )


@contextlib.contextmanager
def _errors_of_the_folder(workdir: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: expected a writable folder, got {error.strerror or error}. Fix: give another folder"
        ) from None


def read_config(workdir: str) -> Any:
    """The stored config of a run; texts that begin with `HERE` become paths in its folder.

    Raises:
      UserError: there is no config, or the file is not a config in JSON.
    """
    path = epath.Path(workdir).expanduser()
    file = path / CONFIG_FILE
    copy = path / "checkpoints" / str(continuation.latest_step(path)) / CONFIG_FILE
    fix = f"copy {copy} there" if copy.exists() else "give the folder of a run, or restore the file"
    if not file.exists():
        raise UserError(f"--workdir={workdir}: expected a folder with {CONFIG_FILE}, got none. Fix: {fix}")
    got = "other JSON"
    try:
        text = file.read_text()
        stored = json.loads(text)
        if isinstance(stored, dict) and TARGET in stored:
            return configs.from_json(json.dumps(_with_paths(stored, str(path))))
    except RecursionError:
        got = "too many nested brackets"
    except ValueError as error:
        got = str(error)
    raise UserError(
        f"--workdir={workdir}: expected the JSON of a config in {file.name}, got {got}. Fix: {fix}"
    )


def _with_paths(stored: Any, workdir: str) -> Any:
    """A stored config whose own files are in `workdir`."""
    if isinstance(stored, dict):
        return {name: _with_paths(value, workdir) for name, value in stored.items()}
    if isinstance(stored, list):
        return [_with_paths(value, workdir) for value in stored]
    own = isinstance(stored, str) and stored.startswith(HERE)
    return f"{workdir}/{stored.removeprefix(HERE)}" if own else stored


def records(workdir: epath.Path) -> dict[str, str]:
    """The files of a run's folder of which each checkpoint has a copy: text by name."""
    return {name: (workdir / name).read_text() for name in RECORDS if (workdir / name).exists()}


def _write(file: epath.Path, content: str) -> None:
    """Write a file as a whole. Each of several processes has a draft of its own, with the same content."""
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    draft.write_text(content)
    draft.replace(file)


def _has_data(workdir: epath.Path) -> bool:
    return (workdir / DATA_FILE).exists()


def _records(experiment: "Experiment", workdir: epath.Path, step: int | None) -> dict[str, str]:
    """The class table and the contents of the data, as files; compared with those of a run that has trained.

    Args:
      step: of the run's newest checkpoint; None before the first.
    """
    source = experiment.data.source
    table = _table(experiment, workdir, step) if experiment.uses_labels else None
    contents = contents_of(source)
    if step is not None and _has_data(workdir):
        _check_contents(workdir, json.loads(json.dumps(contents)))
    found = {DATA_FILE: json.dumps(contents, indent=1) + "\n"}
    return found if table is None else found | {classes.FILE: classes.to_json(table)}


def _table(experiment: "Experiment", workdir: epath.Path, step: int | None) -> Names | None:
    examples = experiment.data.source.open()
    empty = getattr(examples, "empty_classes", ())
    if empty:
        _log.warning("no images in %s: a folder without images is no class and has no number", some(empty))
    stored = None if step is None else classes.read(workdir)
    if stored is not None:
        classes.check_unchanged(stored, examples)
        return stored
    table = classes.of_examples(examples, is_old=bool(step))
    start = experiment.init_from
    return table if start is None or table is None else classes.as_in(start.workdir, table, examples)


def _check_contents(workdir: epath.Path, found: Mapping[str, Any]) -> None:
    """Raise `UserError` if the training examples have changed since the run started."""
    where = f"--workdir={workdir}: {DATA_FILE}"
    stored = read_json(read_text(workdir / DATA_FILE, where), where, "restore the file")
    changed = configs.differences(stored, found)
    if not changed:
        return
    counts = [f"{name}: {old} -> {new}" for name, (old, new) in changed.items() if "sha256" not in name]
    listed = "; ".join(counts) or "as many, with other names, sizes, captions or pixels"
    raise UserError(
        f"config.data.source: expected the examples that the run started with, got others ({listed}). "
        f"Fix: restore them, or start a new run with --from-workdir {workdir}"
    )
