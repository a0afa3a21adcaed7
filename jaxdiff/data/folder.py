"""Image folders: PNG, JPEG and WebP files with classes by subfolder, and captions from text files or a table."""

import csv
import dataclasses
import hashlib
import io
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdiff.data.decoding import FORMATS, Fit, read_image, square
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, between, expect, positive

Captions = Mapping[str, list[str]]
TABLES = (".jsonl", ".csv")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The images in a folder and its subfolders, cut to squares of one size, in the order of their names.

    Hidden files are skipped. `decoding.read_image` and `decoding.square` turn a file into pixels.

    Attributes:
      path: the folder.
      size: side of the square images, in pixels.
      channels: 3 for RGB or 1 for grey.
      split: "train", "test" or "all". The hash of a file's name assigns its split, so adding or removing other files
        does not move it.
      test_fraction: expected fraction of files in the test split.
      label: "folder" makes each subfolder a class, numbered in the order of the names; None for no labels.
      captions: source of the field `text`. None; "txt" for a .txt file of the same name next to each image, one caption
        a line; or the name of a table in the folder, .jsonl or .csv with a header. A list in .jsonl, or several rows
        of one image, give several captions: an array, from which `data.text.Tokenize` draws one.
      file_column: column of the file's path, relative to the folder.
      text_column: column of the caption.
      fit: resizing method, see `decoding.square`.
      background: colour behind transparent pixels, red, green and blue from 0 to 255.
      broken: "error" to stop at an unreadable file, or "skip" to use the next readable one instead.
      max_broken: fraction of unreadable files above which "skip" stops too.
      max_pixels: most pixels of a stored image; a larger image counts as unreadable and is not decoded.
    """

    path: str
    size: int
    channels: Literal[1, 3] = 3
    split: Literal["train", "test", "all"] = "all"
    test_fraction: float = 0.1
    label: Literal["folder"] | None = "folder"
    captions: str | None = None
    file_column: str = "file_name"
    text_column: str = "text"
    fit: Fit = "halving"
    background: tuple[int, int, int] = (255, 255, 255)
    broken: Literal["error", "skip"] = "error"
    max_broken: float = 0.001
    max_pixels: int = 80_000_000

    def __post_init__(self):
        positive(self, "size", "max_pixels")
        between(self, "test_fraction", 0.0, 1.0)
        between(self, "max_broken", 0.0, 1.0)
        fits = all(0 <= level <= 255 for level in self.background)
        expect(
            fits, "background", self.background, "red, green and blue in [0, 255]", "give three such numbers"
        )
        fits = self.captions in (None, "txt") or str(self.captions).endswith(TABLES)
        fix = "name a .jsonl or .csv file in the folder"
        expect(fits, "captions", self.captions, "None, 'txt', or a .jsonl or .csv file", fix)

    @property
    def name(self) -> str:
        return self.path

    def open(self) -> "FolderExamples":
        """List the files of the split, their classes and captions.

        Raises:
          UserError: the folder is missing or has no images, or an image has no class or no caption.
        """
        root = Path(self.path).expanduser()
        got = "a file" if root.exists() else "no such path"
        expect(root.is_dir(), "path", self.path, "a folder of images", "check the path", got)
        paths = [path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in FORMATS]
        files = [path.as_posix() for path in sorted(paths) if not any(p.startswith(".") for p in path.parts)]
        expect(bool(files), "path", self.path, f"{', '.join(FORMATS)} files", "put images there", "none")
        classes = None
        if self.label == "folder":
            loose = [file for file in files if "/" not in file]
            fix = "move it into the folder of its class, or use label=None"
            got = f"{', '.join(loose[:1])} outside of them"
            expect(not loose, "label", self.label, "all images in subfolders", fix, got)
            # From the files of all splits, so that numbers do not depend on the split.
            classes = tuple(dict.fromkeys(file.split("/")[0] for file in files))
        chosen = [file for file in files if self.split in ("all", _split(file, self.test_fraction))]
        captions = None if self.captions is None else _captions(self, root, files, chosen)
        return FolderExamples(self, root, tuple(chosen), classes, captions)

    def fingerprint(self) -> dict[str, str | int]:
        """Identify the data for logs and reports: path, split, number of files, hash of their names and sizes."""
        examples = self.open()
        digest = hashlib.sha256()
        for file in examples.files:
            path = examples.root / file
            size = path.stat().st_size if path.exists() else -1  # a dangling link
            digest.update(_name_bytes(file) + f"\0{size}\0".encode())
        length = len(examples)
        return {"name": self.path, "split": self.split, "length": length, "sha256": digest.hexdigest()}


class FolderExamples:
    """The opened examples of an `ImageFolder`.

    Attributes:
      source: the config block.
      root: the folder.
      files: paths relative to `root`, in order.
      classes: class names in the order of their labels; None without labels.
      image_shape: (size, size, channels).
      num_classes: number of classes; None without labels.
      broken: files skipped so far.
    """

    def __init__(
        self,
        source: ImageFolder,
        root: Path,
        files: tuple[str, ...],
        classes: tuple[str, ...] | None,
        captions: Captions | None,
    ):
        self.source, self.root, self.files, self.classes = source, root, files, classes
        self.image_shape = (source.size, source.size, source.channels)
        self.num_classes = None if classes is None else len(classes)
        self.broken: set[str] = set()
        self._captions = captions
        self._lock = threading.Lock()  # guards `broken`: threads of a pipeline share it

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; with ``broken="skip"``, that of the next readable file."""
        image = self._read(self.files[index])
        while image is None:
            index = (index + 1) % len(self.files)
            image = self._read(self.files[index])
        file = self.files[index]
        example = {"image": image, "index": np.array(index, np.int32)}
        if self.classes is not None:
            example["label"] = np.array(self.classes.index(file.split("/")[0]), np.int32)
        if self._captions is not None:
            texts = self._captions[file]
            example["text"] = np.array(texts if len(texts) > 1 else texts[0])
        return example

    def __repr__(self) -> str:
        return f"{self.source!r}.open()"

    def _read(self, file: str) -> np.ndarray | None:
        """The image of a file, or None if it is skipped."""
        source = self.source
        try:
            image = read_image(self.root / file, file, source.channels, source.background, source.max_pixels)
        except UserError as error:
            if source.broken == "error":
                raise UserError(f"{error}, or use broken='skip'") from None
            self._count(file)
            return None
        return square(image, source.size, source.fit)

    def _count(self, file: str) -> None:
        with self._lock:
            self.broken.add(file)
            count, total = len(self.broken), len(self.files)
        if count == total or count > self.source.max_broken * total:
            raise UserError(
                f"max_broken={self.source.max_broken}: expected a smaller fraction of unreadable files, got {count} "
                f"of {total} files, such as {file}. Fix: replace them, or raise the limit"
            )


def _split(file: str, test_fraction: float) -> str:
    """The split of a file: the hash of its name is a uniform number in [0, 1)."""
    number = int.from_bytes(hashlib.sha256(_name_bytes(file)).digest()[:6], "big") / 2**48
    return "test" if number < test_fraction else "train"


def _name_bytes(file: str) -> bytes:
    """The bytes of a stored name, which may not be UTF-8."""
    return file.encode(errors="surrogateescape")


def _captions(source: ImageFolder, root: Path, files: list[str], chosen: list[str]) -> Captions:
    """The captions of the chosen files, at least one each."""
    if source.captions == "txt":
        found = _captions_of_files(root, chosen)
    else:
        found = _captions_of_table(source, root / str(source.captions), set(files))
    bare = [file for file in chosen if not found.get(file)]
    got = f"none for {len(bare)} of {len(chosen)}, such as {', '.join(bare[:1])}"
    fix = "write one for each image, or move these images away"
    expect(not bare, "captions", source.captions, "a caption for each image", fix, got)
    return found


def _captions_of_files(root: Path, chosen: list[str]) -> dict[str, list[str]]:
    """Captions in .txt files next to the images, one a line."""
    found: dict[str, list[str]] = {}
    for file in chosen:
        path = (root / file).with_suffix(".txt")
        lines = _lines(_text_of(path)) if path.exists() else ()
        found[file] = [line.strip() for line in lines if line.strip()]
    return found


def _captions_of_table(source: ImageFolder, table: Path, files: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for position, row in _rows(table):
        for column in (source.file_column, source.text_column):
            columns = ", ".join(map(str, row))
            expect(
                column in row, "captions", position, f"a column {column}", f"use one of {columns}", columns
            )
        file, text = row[source.file_column], row[source.text_column]
        exists = isinstance(file, str) and file in files
        expect(exists, "captions", position, "the path of an image", "remove the row", repr(file))
        texts = text if isinstance(text, list) else [text]
        fits = all(isinstance(one, str) and one.strip() for one in texts)
        expect(fits, "captions", position, "a caption that is not empty", "write one", repr(text))
        found.setdefault(file, []).extend(texts)
    return found


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, each with its position, ``name:line``."""
    expect(table.exists(), "captions", table.name, "a file in the folder", "name another", "no such file")
    text = _text_of(table)
    if table.suffix == ".csv":
        yield from _csv_rows(table.name, text)
        return
    for number, line in enumerate(_lines(text), 1):
        position = f"{table.name}:{number}"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                message = f"captions={position!r}: expected JSON, got {error}. Fix: correct the line"
                raise UserError(message) from None
            fix = "write one object a line"
            expect(isinstance(row, dict), "captions", position, "a JSON object", fix, type(row).__name__)
            yield position, row


def _csv_rows(name: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            position = f"{name}:{reader.line_num}"
            fix = "put texts with commas into double quotes"
            fields = len(row) - 1 + len(row.get(None) or ())
            expected = f"the {len(row) - 1} fields of the header"
            expect(None not in row, "captions", position, expected, fix, f"{fields} fields")
            yield position, row
    except csv.Error as error:
        position = f"{name}:{reader.line_num}"
        message = f"captions={position!r}: expected CSV, got {error}. Fix: close all quotes"
        raise UserError(message) from None


def _lines(text: str) -> Iterator[str]:
    """Split at line ends of files only: `str.splitlines` would cut a caption at U+2028, too."""
    return iter(io.StringIO(text, newline=None))


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"captions={path.name!r}: expected UTF-8, got other bytes at byte {error.start}. Fix: encode it as UTF-8"
        ) from None
