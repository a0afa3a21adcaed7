"""The folder of a sweep: a JSON line for each finished setting, and the images of each.

    sweep.jsonl       one line per setting, written when it ends
    images/KEY.npz    its samples, and what sampling them took

A key is the hash of everything that decides the samples, so that none is ever made twice.
"""

import hashlib
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.errors import expect

LINES, IMAGES = "sweep.jsonl", "images"

REAL = "real"
"""The key of the line with the values of real images."""

KEY_LENGTH = 20
"""Hexadecimal digits of a key: 80 bits."""

Record = Mapping[str, Any]


class Samples(NamedTuple):
    """The samples of a setting.

    Attributes:
      images: uint8 [n, height, width, channels].
      seconds: time for a sample, without compilation.
      rows: number of samples that were made at once.
    """

    images: np.ndarray
    seconds: float
    rows: int


def key_of(parts: Mapping[str, Any]) -> str:
    """The hash of JSON values; the order of names does not matter."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class Records:
    """The records of a folder.

    Attributes:
      folder: the folder, which is made when the first record is written.
      found: what is recorded, by (key, scored): the hashes of what decides the samples, and their values.

    Raises:
      UserError: a line is damaged. The last one may be cut off, by a process that was killed, and is made again.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.found = folder, dict[tuple[str, str], Record]()
        file = folder / LINES
        data = file.read_bytes() if file.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            record = _parsed(line)
            valid = isinstance(record, dict) and {"key", "scored"} <= record.keys()
            fix = f"remove line {number}; its images are kept"
            expect(valid, f"--out={folder}: {LINES}", f"line {number}", "a JSON object of a sweep", fix)
            self._keep(record)
        self._cut_off = len(whole) if len(whole) < len(data) else None

    def add(self, record: Record) -> None:
        """Write a line, on disk before this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LINES).open("ab") as file:
            if self._cut_off is not None:
                file.truncate(self._cut_off)
                self._cut_off = None
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(record)

    def samples(self, key: str) -> Samples | None:
        """The kept samples of a key; None if there are none, or the file is damaged."""
        try:
            with self._file(key).open("rb") as file, np.load(file) as arrays:
                images = arrays["images"]
                kept = Samples(images, float(arrays["seconds"]), int(arrays["rows"]))
                return kept if images.dtype == np.uint8 else None
        except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def keep(self, key: str, samples: Samples) -> None:
        """Store samples, as a whole or not at all."""
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{key}.part")
        with part.open("wb") as opened:
            np.savez_compressed(opened, **samples._asdict())
        part.replace(file)

    def _file(self, key: str) -> pathlib.Path:
        return self.folder / IMAGES / f"{key}.npz"

    def _keep(self, record: Record) -> None:
        self.found[record["key"], record["scored"]] = record


def of_one_sweep(records: Iterable[Record], scored: str, base: str | None) -> list[Record]:
    """The records of settings with these metrics and of this run; the latest of each setting."""
    scored_so = (record for record in records if record["scored"] == scored and record["key"] != REAL)
    same = [record for record in scored_so if record.get("base") == base]
    return list({json.dumps(record["setting"], sort_keys=True): record for record in same}.values())


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
