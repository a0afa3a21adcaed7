"""A run begun anew: its files so far are moved aside, and none is deleted."""

import jax
from etils import epath
from jax.experimental import multihost_utils

FOLDER = "before_restart"

WRITTEN = (
    "config.json",
    "classes.json",
    "data.json",
    "checkpoints",
    "averages",
    "untrained",
    "frozen.json",
    "metrics.jsonl",
    "tensorboard",
    "samples",
    "evaluation",
    "evaluation.json",
    "evaluation.png",
)
"""Files and folders that training writes into a run's folder."""


def move_aside(workdir: epath.PathLike) -> epath.Path | None:
    """Move everything that training has written in `workdir` to a new folder in it; None if there was nothing."""
    workdir = epath.Path(workdir).expanduser()
    found = [workdir / name for name in WRITTEN if (workdir / name).exists()]
    folder = None
    if jax.process_index() == 0 and found:
        used = {path.name for path in workdir.glob(f"{FOLDER}*")}
        names = (FOLDER, *(f"{FOLDER}_{number}" for number in range(2, len(used) + 2)))
        folder = workdir / next(name for name in names if name not in used)
        folder.mkdir()
        for path in found:
            path.rename(folder / path.name)
    multihost_utils.sync_global_devices("restart")
    return folder
