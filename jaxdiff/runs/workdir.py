"""A run's folder: its stored config, made when training starts and read by everything else."""

import json
from typing import Any

from etils import epath

from jaxdiff import config as configs
from jaxdiff.config.renamed import upgrade
from jaxdiff.errors import UserError

CONFIG_FILE = "config.json"

# What a run may change when it is continued: it alters how long, how often or where, never what is learned so far.
FREE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "keep",
    "sample_every",
    "sampling",
    "evaluation",
    "mesh",
    "test_data",
)


def init_workdir(config: Any, workdir: str) -> epath.Path:
    """Make `workdir` the home of `config`: store it there, or see that the run there has the same one.

    Raises:
      UserError: a run with another config lives there (naming the fields that differ), or it cannot be written.
    """
    path = epath.Path(workdir).expanduser()
    file = path / CONFIG_FILE
    try:
        path.mkdir(parents=True, exist_ok=True)
        if file.exists() and _has_trained(path):
            changed = configs.differences(upgrade(json.loads(file.read_text())), config)
            fixed = {
                name: (old, new)
                for name, (old, new) in changed.items()
                # A field that is younger than the run, and says nothing, changes nothing.
                if name.partition(".")[0] not in FREE and not (old == "absent" and new in (None, []))
            }
            if fixed:
                listed = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in fixed.items())
                raise UserError(
                    f"--workdir={workdir}: a run with another config lives there ({listed}). "
                    "Fix: use another --workdir, or the same config"
                )
        partial = path / f"{CONFIG_FILE}.new"
        partial.write_text(configs.to_json(config))
        partial.replace(file)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: {error.strerror or error}. Fix: give a folder that can be written"
        ) from None
    return path


def _has_trained(workdir: epath.Path) -> bool:
    """Whether there is something to continue: a run that failed before its first checkpoint binds nobody."""
    checkpoints = workdir / "checkpoints"
    return checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())


def read_config(workdir: str) -> Any:
    """The resolved config that a run stored."""
    file = epath.Path(workdir).expanduser() / CONFIG_FILE
    if not file.exists():
        raise UserError(
            f"--workdir={workdir}: there is no {CONFIG_FILE}. Fix: give the folder of a training run"
        )
    try:
        return configs.from_json(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: {error}. Fix: restore the file; it is not JSON any more") from None
