"""Outputs: a file or folder that a user names, checked before the work and replaced only when complete.

Imports nothing heavy. An output is written beside its place under a name of our own, and renamed. A symbolic link is
followed: its target is replaced, and the link stays.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import NoReturn

from jaxdiff.errors import RunFailure, UserError, reason

Fill = Callable[[pathlib.Path], object]
"""Writes an output: receives the path of an empty folder, or of an empty file."""

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
ARCHIVES = (".npz", ".npy")
PAGES = (".html", ".htm")
FORMS = f"{' '.join((*PICTURES, *ARCHIVES))}, or a folder (no suffix, or a slash at the end)"
PLACE = "a place that can be written"
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}")
"""What looks like the suffix of a file; ``runs/digits-0.08`` has none."""
_SPARE = 1 << 14


@dataclasses.dataclass(frozen=True)
class Output:
    """An output that a user named.

    Attributes:
      flag: the flag and its text, for errors.
      path: the absolute place, without symbolic links.
      suffix: the format, in small letters; "" for a folder, "." for a file without one.
      overwrite: whether an earlier output is replaced; None for a command that replaces none.
      is_ours: whether a file of this name inside an existing folder is an output of the command.
    """

    flag: str
    path: pathlib.Path
    suffix: str
    overwrite: bool | None = None
    is_ours: Callable[[str], bool] = lambda name: False

    def check(self) -> None:
        """Raise `UserError` unless the output can be written; a trial is written beside its place, and removed."""
        try:
            self._check_existing()
            with _parents(self.path), _draft(self.path, self.is_folder):
                pass
        except OSError as error:
            self._refuse(PLACE, _reason(error), "give another place")

    def check_space(self, size: int) -> None:
        """Raise `UserError` unless `size` bytes fit on the disk."""
        free = shutil.disk_usage(next(parent for parent in self.path.parents if parent.exists())).free
        if size + _SPARE > free:
            expected = f"{readable(size + _SPARE)} of free space"
            self._refuse(expected, readable(free), "make room, give another place, or ask for less")

    def write(self, fill: Fill) -> None:
        """Write the output by `fill`.

        If that fails, the output is written into the folder for temporary files, and the error names it.

        Raises:
          RunFailure: the output could not be written to its place.
          UserError: something was made there meanwhile.
        """
        try:
            with _parents(self.path), _draft(self.path, self.is_folder) as draft:
                fill(draft)
                self._check_existing()
                self._put(draft)
        except UserError:  # the place was free before the work
            self._rescue(fill, "a file or folder that was made there meanwhile", UserError)
        except (OSError, RunFailure) as error:
            self._rescue(fill, _reason(error), RunFailure)

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder."""
        return self.suffix == ""

    def _put(self, draft: pathlib.Path) -> None:
        """Rename a complete draft; an earlier folder is removed afterwards, file by file."""
        if not self.path.is_dir():
            os.replace(draft, self.path)
            return
        old = _beside(self.path)
        self.path.rename(old)
        try:
            draft.rename(self.path)
        except OSError:
            old.rename(self.path)
            raise
        for entry in list(old.iterdir()):
            entry.unlink()
        old.rmdir()

    def _rescue(self, fill: Fill, got: str, raises: type[Exception]) -> NoReturn:
        for folder in (tempfile.gettempdir(), os.curdir):
            kept = pathlib.Path(folder).resolve() / f"jaxdiff-{secrets.token_hex(3)}-{self.path.name[-99:]}"
            if self._kept(fill, kept):
                raise raises(self._refusal(PLACE, got, f"make room there; the output was kept as {kept}"))
        raise raises(self._refusal(PLACE, f"{got}, there and elsewhere", "make room, and try again"))

    def _kept(self, fill: Fill, path: pathlib.Path) -> bool:
        """Whether the output could be written to another place."""
        try:
            if self.is_folder:
                path.mkdir()
            fill(path)
            return True
        except (OSError, UserError, RunFailure):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if self.is_folder else path.unlink()
            return False

    def _check_existing(self) -> None:
        """Raise `UserError` unless there is nothing, or an earlier output that may be replaced."""
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            return
        meant, kind = "a folder" if self.is_folder else "a file", _kind(mode)
        got, fix = f"an existing {kind.removeprefix('a ')}", "give another name"
        if kind != meant:
            self._refuse(meant, got, fix)
        if not self.overwrite:
            self._refuse(
                f"a new {meant.removeprefix('a ')}",
                got,
                fix if self.overwrite is None else f"{fix}, or --overwrite",
            )
        for entry in self.path.iterdir() if self.is_folder else ():
            if not (self.is_ours(entry.name) and entry.is_file() and not entry.is_symlink()):
                self._refuse("a folder of this command's outputs", f"one with {entry.name!r}", fix)

    def _refuse(self, expected: str, got: str, fix: str) -> NoReturn:
        raise UserError(self._refusal(expected, got, fix))

    def _refusal(self, expected: str, got: str, fix: str) -> str:
        return f"{self.flag}: expected {expected}, got {got}. Fix: {fix}"


def of_images(flag: str, text: str, overwrite: bool) -> Output:
    """The output for images that `text` names; its suffix, in any case, is the format.

    Raises:
      UserError: the suffix is that of another format, or `text` is no name.
    """
    suffix = "" if text.endswith("/") else pathlib.Path(text).suffix.lower()
    if suffix not in (*PICTURES, *ARCHIVES):
        if _SUFFIX.fullmatch(suffix.strip()):
            raise UserError(
                f"{flag}={text}: expected {FORMS}, got the suffix {suffix}. Fix: use one of these"
            )
        suffix = ""
    return Output(f"{flag}={text}", place(flag, text), suffix, overwrite, is_numbered)


def folder(flag: str, text: str) -> Output:
    """The output for a new folder that `text` names."""
    return Output(f"{flag}={text}", place(flag, text), "")


def file(flag: str, text: str) -> Output:
    """The output for a new file that `text` names, with any suffix."""
    path = place(flag, text)
    return Output(f"{flag}={text}", path, path.suffix or ".")


def page(flag: str, text: str, overwrite: bool) -> Output:
    """The output for a page of HTML that `text` names.

    Raises:
      UserError: the suffix is another one.
    """
    path = place(flag, text)
    if path.suffix.lower() not in PAGES:
        raise UserError(
            f"{flag}={text}: expected {' or '.join(PAGES)}, got {path.suffix or 'no suffix'}. Fix: name a file of HTML"
        )
    return Output(f"{flag}={text}", path, path.suffix.lower(), overwrite)


def place(flag: str, text: str) -> pathlib.Path:
    """The absolute path that `text` names, with symbolic links followed."""
    if "://" in text:
        raise UserError(
            f"{flag}={text}: expected a place on this machine, got an address. Fix: give a local path, and copy it"
        )
    path = pathlib.Path(text).expanduser()
    if path.name in ("", "..") or not text.strip():
        raise UserError(
            f"{flag}={text}: expected the name of a file or folder, got {text!r}. Fix: give a new name, such as samples"
        )
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise UserError(
            f"{flag}={text}: expected a path, got {_reason(error)}. Fix: give another name"
        ) from None


def is_numbered(name: str) -> bool:
    """Whether a name is that of an image in a folder of samples: ``000012.png``."""
    return re.fullmatch(r"[0-9]{6,}\.png", name) is not None


def readable(size: int | float) -> str:
    """A number of bytes with a decimal prefix: ``1.5 GB``."""
    for prefix in ("", "k", "M", "G", "T"):
        if size < 999.5:
            return f"{size:.3g} {prefix}B"
        size /= 1000
    return f"{size:.3g} PB"


@contextlib.contextmanager
def _draft(path: pathlib.Path, is_folder: bool) -> Iterator[pathlib.Path]:
    """An empty draft of our own beside `path`. What is left of it at the end is removed."""
    draft = _beside(path)
    try:
        if is_folder:
            draft.mkdir()
        else:
            draft.open("xb").close()
        yield draft
    finally:
        if is_folder:
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def _beside(path: pathlib.Path) -> pathlib.Path:
    """A new name in the same folder, which is no longer for a long name."""
    return path.parent / f".jaxdiff-{secrets.token_hex(6)}.partial"


@contextlib.contextmanager
def _parents(path: pathlib.Path) -> Iterator[None]:
    """Create the folders above `path`. New folders that are empty at the end are removed."""
    absent = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in absent:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a device or pipe"


def _reason(error: Exception) -> str:
    """The reason of a failure, in the words of the system for a failed system call."""
    code = getattr(error, "errno", None)
    if code in (errno.EEXIST, errno.ENOTDIR):
        return "a file where a folder is needed"
    return os.strerror(code).lower() if code else reason(error)
