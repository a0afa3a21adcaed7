"""Reports as files."""

import contextlib
import errno
import io
import json
import os
import secrets
import shutil
import tempfile

from etils import epath
from PIL import Image

from jaxdiff.errors import RunFailure, UserError, expect
from jaxdiff.evaluation.protocols import Report

NAMES = ("evaluation.json", "evaluation.png")


def make(folder: str | os.PathLike[str], overwrite: bool) -> epath.Path:
    """Make the folder of ``--out``, and return it.

    Raises:
      UserError: it cannot be made, or has a report that may not be replaced.
    """
    path, fix = epath.Path(folder).expanduser(), "name another folder, or give --overwrite"
    there = any((path / name).exists() for name in NAMES)
    expect(overwrite or not there, "--out", str(folder), "a folder without a report", fix, "one")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"--out={folder}: expected a folder that can be made, got {reason}. Fix: name another"
        ) from None
    return path


def check(workdir: str | os.PathLike[str]) -> None:
    """Raise `UserError` unless a report can be written into `workdir`; a trial is written there, and removed."""
    try:
        for name in NAMES:
            if (epath.Path(workdir) / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        _put(workdir, f".trial-{secrets.token_hex(6)}", b"").unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--workdir={workdir}: expected a folder for {' and '.join(NAMES)}, got {reason.lower()}. "
            "Fix: make it writable, with room for them"
        ) from None


def write(report: Report, workdir: str | os.PathLike[str]) -> None:
    """Write ``evaluation.json`` and ``evaluation.png`` into `workdir`, atomically each.

    If that fails, they are written into a new folder for temporary files.

    Raises:
      RunFailure: they could not be written into `workdir`; names the other folder, if there is one.
    """
    png = io.BytesIO()
    Image.fromarray(report.figure).save(png, "PNG", optimize=True)
    text = json.dumps(report.values, indent=1, allow_nan=False) + "\n"
    contents = (text.encode(), png.getvalue())
    try:
        epath.Path(workdir).mkdir(parents=True, exist_ok=True)
        for name, data in zip(NAMES, contents, strict=True):
            _put(workdir, name, data)
    except OSError as error:
        kept = _keep(contents)
        where = f"the report was kept in {kept}" if kept else "the report is lost, and can be computed again"
        raise RunFailure(
            f"--workdir={workdir}: expected a writable folder, got {(error.strerror or str(error)).lower()}. "
            f"Fix: make room or give access; {where}"
        ) from None


def _keep(contents: tuple[bytes, bytes]) -> str | None:
    """Write the files into a new folder for temporary files, and return it; None if there is no room either."""
    kept = ""
    try:
        kept = tempfile.mkdtemp(prefix="jaxdiff-evaluation-")
        for name, data in zip(NAMES, contents, strict=True):
            _put(kept, name, data)
        return kept
    except OSError:
        shutil.rmtree(kept, ignore_errors=True)
        return None


def _put(folder: str | os.PathLike[str], name: str, data: bytes) -> epath.Path:
    """Write a file beside its place, and rename it; what is left of a failed attempt is removed."""
    part, file = epath.Path(folder) / f".{name}.part", epath.Path(folder) / name
    try:
        part.write_bytes(data)
        return part.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
