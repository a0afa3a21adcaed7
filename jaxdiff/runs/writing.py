"""Folders of converted runs, written as a whole: parameters as files of their own, read back, and their record."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath

from jaxdiff import config as configs
from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import RunFailure
from jaxdiff.experiment import Experiment
from jaxdiff.interop.files import release
from jaxdiff.interop.mapping import check_finite
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.runs.draft import draft
from jaxdiff.runs.weights import RECORD, FileWeights, write_record
from jaxdiff.runs.workdir import CONFIG_FILE, FROZEN, read_config

Files = Mapping[str, Mapping[str, Pending]]
"""Parameters by the file that holds them, and by their paths in it."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What the folder of a run holds.

    Attributes:
      files: parameters to write.
      fill: writes everything else into the folder.
      more: bytes that `fill` writes.
    """

    files: Files
    fill: Callable[[pathlib.Path], None]
    more: int = 0


def make(
    workdir: str, runs: Mapping[str, RunFiles], fill: Callable[[pathlib.Path], None] | None = None
) -> None:
    """Make the folder of a run, or of several below it; of several processes the first one does.

    No more than one array is in memory at a time. The folder appears when it is complete.

    Args:
      workdir: the folder.
      runs: by their folders in it; "" is itself.
      fill: writes everything else into the folder.

    Raises:
      UserError: an array is not finite, or the disk has no room.
      RunFailure: what can be read back differs.
    """
    size = sum(run.more + _bytes(run.files) for run in runs.values())

    def write() -> None:
        with draft(workdir, size) as folder:
            if fill is not None:
                fill(folder)
            for name, run in runs.items():
                own = folder / name
                (own / FROZEN).mkdir(parents=True)
                run.fill(own)
                _write(run.files, own, workdir)

    in_first(write)


def count(files: Files) -> int:
    """The number of parameters."""
    return sum(int(np.prod(each.shape)) for tensors in files.values() for each in tensors.values())


def _bytes(files: Files) -> int:
    arrays = [each for tensors in files.values() for each in tensors.values()]
    return sum(int(np.prod(each.shape)) * np.dtype(each.dtype).itemsize for each in arrays)


def _write(files: Files, folder: pathlib.Path, workdir: str) -> None:
    """Write files of parameters into the folder of a run, and the record of their hashes; see `write_files`."""
    write_files(files, folder, workdir)
    experiment: Experiment = configs.build(read_config(str(folder)))
    read = {name: origin.read() for name, origin in experiment.task.frozen.items()}
    # The folder is a draft: its name is not that of the run.
    stored: Experiment = configs.build(configs.from_json((folder / CONFIG_FILE).read_text()))
    write_record(stored.task.frozen, read, epath.Path(folder) / RECORD)


def write_files(files: Files, folder: pathlib.Path, workdir: str) -> None:
    """Write files of parameters into a folder, and read them back.

    Args:
      files: the parameters.
      folder: where to write; a draft.
      workdir: the folder that it becomes, for errors.

    Raises:
      UserError: an array is not finite.
      RunFailure: what can be read back differs.
    """
    for name, tensors in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / name, {path: _finite(each) for path, each in tensors.items()})
    _check_written(files, folder, workdir)


def _finite(pending: Pending) -> Pending:
    """The same array, refused if it is not finite."""

    def read() -> np.ndarray:
        array = pending.read()
        check_finite({pending.origin: array})
        return array

    return dataclasses.replace(pending, read=read)


def _check_written(files: Files, folder: pathlib.Path, workdir: str) -> None:
    """Raise `RunFailure` unless what was written is what was read, bit for bit."""
    for name, tensors in files.items():
        written = FileWeights(str(folder / name)).arrays()
        for path, pending in tensors.items():
            same = written[path].tobytes() == pending.read().tobytes()
            release(written[path])
            if not same:
                raise RunFailure(
                    f"--workdir={workdir}: expected to read back {path} as it was written, got other values. "
                    "Fix: convert again, to another disk"
                )
