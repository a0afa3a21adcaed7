"""Text files: UTF-8 with or without a byte order mark, for captions, tables and lines of conditions."""

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from jaxdiff.errors import UserError

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of other encodings; the longer ones come first, since they begin with a shorter one."""


def read_text(path: Path | epath.Path, name: str) -> str:
    """The text of a file; a byte order mark of UTF-8 is left out.

    Args:
      path: of the file, which may also be a pipe.
      name: ``field=value`` for errors.

    Raises:
      UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise UserError(
            f"{name}: expected a text file, got {got}. Fix: give the path of a text file"
        ) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = next((known for mark, known in MARKS.items() if content.startswith(mark)), None)
        got = f"other bytes at byte {error.start}" + (f" ({found})" if found else "")
        raise UserError(f"{name}: expected UTF-8, got {got}. Fix: encode it as UTF-8") from None


def lines(text: str) -> Iterator[str]:
    """Split at line ends of files only: `str.splitlines` would cut a caption at U+2028, too."""
    return iter(io.StringIO(text, newline=None))


def read_json(text: str, where: str, fix: str) -> Any:
    """The value of a JSON text; `where` and `fix` are for the error.

    Raises:
      UserError: the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where}: expected JSON, got too many nested brackets. Fix: {fix}") from None
    except ValueError as error:
        raise UserError(f"{where}: expected JSON, got {error}. Fix: {fix}") from None
