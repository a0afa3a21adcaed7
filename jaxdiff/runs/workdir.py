"""The folder of a run and its stored config, written when training starts and read by all other commands."""

import json
from typing import Any

from etils import epath

from jaxdiff import config as configs
from jaxdiff.config.overrides import is_default
from jaxdiff.config.renamed import upgrade
from jaxdiff.errors import UserError

CONFIG_FILE = "config.json"

RECORDS = (CONFIG_FILE,)
"""Files of a run's folder of which each checkpoint has a copy."""

# Fields that may change when a run continues: they affect duration, outputs or devices, not what is learned.
FREE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "keep",
    "keep_also",
    "sample_every",
    "sampling",
    "evaluation",
    "mesh",
    "test_data",
)


def init_workdir(config: Any, workdir: str) -> epath.Path:
    """Create the folder of a run and store its config, or check that the run there has the same config.

    Returns:
      The folder.

    Raises:
      UserError: the folder holds a run with another config (the error names the fields), or it cannot be written.
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
                # A field that the stored config lacks, with its default value, changes nothing.
                if name.partition(".")[0] not in FREE and not (old == "absent" and is_default(config, name))
            }
            if fixed:
                listed = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in fixed.items())
                raise UserError(
                    f"--workdir={workdir}: expected an empty folder or a run with this config, "
                    f"got a run with another config ({listed}). Fix: use another --workdir, or the same config"
                )
        partial = path / f"{CONFIG_FILE}.new"
        partial.write_text(configs.to_json(config))
        partial.replace(file)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: expected a writable folder, got {error.strerror or error}. Fix: give another folder"
        ) from None
    return path


def _has_trained(workdir: epath.Path) -> bool:
    """Whether the run has a checkpoint. The config of a run without one may be replaced."""
    checkpoints = workdir / "checkpoints"
    return checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())


def read_config(workdir: str) -> Any:
    """The stored config of a run.

    Raises:
      UserError: there is no config, or the file is not valid JSON.
    """
    file = epath.Path(workdir).expanduser() / CONFIG_FILE
    if not file.exists():
        raise UserError(
            f"--workdir={workdir}: expected a folder with {CONFIG_FILE}, got none. Fix: give the folder of a run"
        )
    try:
        return configs.from_json(file.read_text())
    except ValueError as error:
        raise UserError(
            f"--workdir={workdir}: expected JSON in {file.name}, got {error}. Fix: restore the file"
        ) from None
