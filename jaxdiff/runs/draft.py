"""A folder that is written as a whole: a draft beside its place, which gets its name when it is complete."""

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator

from jaxdiff.errors import RunFailure, UserError, reason
from jaxdiff.training.disk import free_space


def check_new(workdir: str) -> None:
    """Raise `UserError` unless a folder is on this machine and absent, or empty.

    Nothing of an existing folder is replaced.
    """
    if "://" in workdir:
        raise UserError(
            f"--workdir={workdir}: expected a folder on this machine, got an address. Fix: give one, and copy it there"
        )
    path = pathlib.Path(workdir).expanduser()
    try:
        entry = next(path.iterdir(), None)
    except FileNotFoundError:
        return
    except OSError as error:
        got = reason(error)
        raise UserError(
            f"--workdir={workdir}: expected a new folder, got {got}. Fix: give another name"
        ) from None
    if entry is not None:
        raise UserError(
            f"--workdir={workdir}: expected a new folder, got one with {entry.name!r}. Fix: give another name"
        )


@contextlib.contextmanager
def draft(workdir: str, size: int) -> Iterator[pathlib.Path]:
    """A folder that becomes `workdir` at the end, or nothing after an error. Drafts of killed processes are removed.

    Args:
      workdir: the folder to make, see `check_new`.
      size: bytes that will be written.

    Raises:
      UserError: the disk has no room for them.
      RunFailure: the folder could not be written.
    """
    path = pathlib.Path(workdir).expanduser().resolve()
    folder = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        _remove_abandoned(path)
        _check_space(workdir, path, size)
        folder.mkdir(parents=True)
        with locked(folder):
            yield folder
            if path.exists():
                path.rmdir()
            folder.rename(path)
    except OSError as error:
        raise _failure(workdir, error) from error
    except UserError as error:
        # Writers of files name the file in the draft, and the user knows the run's folder.
        if isinstance(error.__cause__, OSError) and str(folder) in error.message:
            raise _failure(workdir, error.__cause__) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _failure(workdir: str, error: OSError) -> RunFailure:
    return RunFailure(
        f"--workdir={workdir}: expected a folder that can be written, got {reason(error)}. "
        "Fix: make room, or give another folder"
    )


def _check_space(workdir: str, path: pathlib.Path, size: int) -> None:
    free = free_space(path)
    if free < size:
        raise UserError(
            f"--workdir={workdir}: expected {size / 1e6:,.0f} MB of free space, got {free / 1e6:,.0f} MB. "
            "Fix: make room, or give a folder on another disk"
        )


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[bool]:
    """Take the operating system's lock of a folder, which ends with the process and says that the draft is in use.

    Yields False where another process holds it, or the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _remove_abandoned(path: pathlib.Path) -> None:
    """Remove drafts of `path` whose processes were killed."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}\.partial")
    for folder in path.parent.glob(".*.partial"):
        if ours.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            with locked(folder) as abandoned:
                if abandoned:
                    shutil.rmtree(folder, ignore_errors=True)
