"""A run begun anew: its files so far are moved aside, and none is deleted."""

from etils import epath

from jaxdiff.distributed.first_process import in_first

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
    "passed_over.json",
    "diverged",
    "profile",
    "tensorboard",
    "samples",
    "evaluation",
    "evaluation.json",
    "evaluation.png",
)
"""Files and folders that training writes into a run's folder."""


def move_aside(workdir: epath.PathLike) -> epath.Path | None:
    """Move everything that training has written in `workdir` to a new folder in it; None if there was nothing.

    Of several processes the first one does, and only it returns the folder.
    """
    return in_first(lambda: _moved(epath.Path(workdir).expanduser()))


def _moved(workdir: epath.Path) -> epath.Path | None:
    found = [workdir / name for name in WRITTEN if (workdir / name).exists()]
    if not found:
        return None
    used = {path.name for path in workdir.glob(f"{FOLDER}*")}
    names = (FOLDER, *(f"{FOLDER}_{number}" for number in range(2, len(used) + 2)))
    folder = workdir / next(name for name in names if name not in used)
    folder.mkdir()
    for path in found:
        path.rename(folder / path.name)
    return folder
