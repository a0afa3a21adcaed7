"""Free space for the checkpoints of a run."""

import logging
import shutil
from typing import Any

import jax
from etils import epath

from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import UserError

_log = logging.getLogger(__name__)


def check_space(directory: epath.Path, abstract: Any, count: int) -> None:
    """Compare the free space of a local disk with the size of checkpoints; of several processes the first one does.

    Args:
      directory: of the checkpoints.
      abstract: shapes and types of a state.
      count: number of checkpoints that will be on disk in addition to the present ones.

    Raises:
      UserError: not even one fits. Fewer than `count` are a warning.
    """
    if "://" not in str(directory):
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
        in_first(lambda: _check(directory, size, count))


def free_space(directory: epath.PathLike) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    folder = epath.Path(directory)
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _check(directory: epath.Path, size: int, count: int) -> None:
    free = free_space(directory)
    found = f"{free / 1e6:,.0f} MB on the disk of {directory}"
    if free < size:
        raise UserError(
            f"--workdir={directory.parent}: expected room for a checkpoint of {size / 1e6:,.0f} MB, got {found}. "
            "Fix: make room, or give a folder on another disk"
        )
    if free < count * size:
        text = "expected room for %d more checkpoints of %.0f MB, got %s; saving may fail later"
        _log.warning(text, count, size / 1e6, found)
