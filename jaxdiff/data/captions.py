"""Captions of an image folder: text files next to the images, or a table of file names and texts."""

import csv
import io
import os
import posixpath
import unicodedata
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jaxdiff.data.text_files import lines, read_json, read_text
from jaxdiff.errors import UserError, expect

Captions = Mapping[str, list[str]]
"""The captions of each file, at least one."""

MOST_COMPARED = 5000
"""Names that a suggestion is chosen from; more would take seconds."""


def of_files(root: Path, chosen: Sequence[str]) -> dict[str, list[str]]:
    """Captions in .txt files next to the images, one a line; empty for an image without such a file."""
    found: dict[str, list[str]] = {}
    for file in chosen:
        path = (root / file).with_suffix(".txt")
        name = f"captions={path.name!r}"
        if path.exists() and not path.is_file():
            raise UserError(f"{name}: expected a text file, got {_kind(path)}. Fix: rename or remove it")
        text = read_text(path, name) if path.exists() else ""
        found[file] = [line.strip() for line in lines(text) if line.strip()]
    return found


def of_table(root: Path, table: str, columns: tuple[str, str], files: Sequence[str]) -> dict[str, list[str]]:
    """Captions in a table of the folder.

    Args:
      root: the folder.
      table: name of a .jsonl or .csv file in it.
      columns: names of the columns of the file's path and of the caption.
      files: all images of the folder, by their paths relative to it.

    Raises:
      UserError: the table is missing or malformed, or a row names no image or has no caption.
    """
    found: dict[str, list[str]] = {}
    names = FileNames(root, files)
    for position, row in _rows(root / table):
        for column in columns:
            known = ", ".join(map(str, row))
            expect(column in row, "captions", position, f"a column {column}", f"use one of {known}", known)
        file, text = (row[column] for column in columns)
        texts = text if isinstance(text, list) else [text]
        fits = all(isinstance(one, str) and one.strip() for one in texts)
        file = names.find(file, position)
        expect(fits, "captions", position, "a caption that is not empty", "write one", repr(text))
        found.setdefault(file, []).extend(texts)
    return found


class FileNames:
    """The images of a folder, found under the names that tables of other systems give them.

    A name that is a file's is that file. Otherwise separators of Windows, ``./``, absolute paths below the folder,
    percent encoding and forms of Unicode are accepted, if only one file fits.
    """

    def __init__(self, root: Path, files: Sequence[str]):
        self._root, self._files, self._exact = root, files, frozenset(files)
        self._by_form: dict[str, list[str]] | None = None

    def find(self, name: object, position: str) -> str:
        """The file that a row of a table names; `position` is for errors.

        Raises:
          UserError: there is no such file, or several fit.
        """
        if isinstance(name, str) and name in self._exact:
            return name
        found = self._alike(name) if isinstance(name, str) else []
        if len(found) > 1:
            listed = " and ".join(map(repr, found[:2]))
            expect(False, "captions", position, "the path of one image", "write its exact name", listed)
        expect(bool(found), "captions", position, "the path of an image", self._advice(name), repr(name))
        return found[0]

    def _alike(self, name: str) -> list[str]:
        """Files with the same plain form, as it is written or else with percent signs decoded."""
        forms = self._forms()
        for text in (name, urllib.parse.unquote(name.removeprefix("file://"))):
            found = next((forms[form] for form in self._relative(text) if form in forms), None)
            if found:
                return found
        return []

    def _relative(self, name: str) -> Iterator[str]:
        """The plain form of a name, relative to the folder."""
        form = plain(name)
        yield form
        for root in (self._root.absolute(), self._root.resolve()):
            yield form.removeprefix(plain(str(root)) + "/")

    def _forms(self) -> dict[str, list[str]]:
        if self._by_form is None:
            self._by_form = {}
            for file in self._files:
                self._by_form.setdefault(plain(file), []).append(file)
        return self._by_form

    def _advice(self, name: object) -> str:
        written = f"names are relative to the folder, such as {self._files[0]}"
        word = plain(name) if isinstance(name, str) else ""
        known = self._files[:MOST_COMPARED]
        same = [file for file in known if posixpath.basename(file) == posixpath.basename(word)]
        close = same or get_close_matches(word, known, 1, 0.6)
        return f"did you mean {close[0]}? {written}" if close else f"remove the row; {written}"


def plain(name: str) -> str:
    """A name with ``/`` between its parts, without ``.`` and ``..``, in composed characters (NFC)."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, each with its position, ``name:line``."""
    got = _kind(table) if table.exists() else "no such file"
    expect(table.is_file(), "captions", table.name, "a file in the folder", "name another", got)
    text = read_text(table, f"captions={table.name!r}")
    if table.suffix == ".csv":
        yield from _csv_rows(table.name, text)
        return
    for number, line in enumerate(lines(text), 1):
        if line.strip():
            position = f"{table.name}:{number}"
            row = read_json(line, f"captions={position!r}", "correct the line")
            fix = "write one object a line"
            expect(isinstance(row, dict), "captions", position, "a JSON object", fix, type(row).__name__)
            yield position, row


def _csv_rows(name: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    begin = 1  # of the row that is read: `line_num` does not count the lines of a broken one
    try:
        header = len(reader.fieldnames or ())
        begin = reader.line_num + 1
        for row in reader:
            position = f"{name}:{reader.line_num}"
            fix = "put texts with commas into double quotes"
            fields = header + len(row.get(None) or ())
            expected = f"the {header} fields of the header"
            expect(None not in row, "captions", position, expected, fix, f"{fields} fields")
            yield position, row
            begin = reader.line_num + 1
    except csv.Error as error:
        position = f"{name}:{begin}"
        message = f"captions={position!r}: expected CSV, got {error}. Fix: close all quotes"
        raise UserError(message) from None


def _kind(path: os.PathLike[str]) -> str:
    return "a folder" if os.path.isdir(path) else "a pipe or a device"
