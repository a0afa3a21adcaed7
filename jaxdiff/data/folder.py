"""Folders of image files, with classes by subfolder and captions beside the images."""

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
from jaxdiff.errors import UserError, require

Captions = Mapping[str, list[str]]
TABLES = (".jsonl", ".csv")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The PNG, JPEG and WebP files in a folder and its subfolders, as squares of one size, in the order of their names.

    Hidden files are left out. How files become pixels: `decoding.read_image` and `decoding.square`.

    Attributes:
      path: the folder.
      size: of the images, in pixels.
      channels: 3 for RGB or 1 for grey.
      split: "train", "test" or "all". A file is for testing if the hash of its name says so: others that come or go
        do not move it.
      test_share: how many are, on average.
      label: "folder" makes each subfolder a class, numbered in the order of the names; None has no labels.
      captions: the field `text`. None; "txt", a file of the same name beside each image, with a caption a line; or the
        name of a table in the folder, .jsonl or .csv with a header. A list in .jsonl, and several rows of one image,
        are several captions: an array, of which `data.text.Tokenize` draws one.
      file_column, text_column: names of the table's columns; files are named from the folder on.
      fit: how pictures are resized, see `decoding.square`.
      background: the colour under what is transparent.
      broken: what to do about a file that cannot be read: "error", or "skip" to show the next one that can.
      max_broken: the share of broken files above which to stop all the same.
      max_pixels: of a picture as it is stored; a larger one counts as broken, and is not decoded.
    """

    path: str
    size: int
    channels: Literal[1, 3] = 3
    split: Literal["train", "test", "all"] = "all"
    test_share: float = 0.1
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
        require(self.size > 0, "size", self.size, "nothing would be left", "give at least 1")
        for field in ("test_share", "max_broken"):
            fits = 0 <= getattr(self, field) <= 1
            require(fits, field, getattr(self, field), "it is a share", "give a number from 0 to 1")
        fits = all(0 <= level <= 255 for level in self.background)
        require(fits, "background", self.background, "it is no colour", "give red, green, blue from 0 to 255")
        require(self.max_pixels > 0, "max_pixels", self.max_pixels, "nothing is so small", "give at least 1")
        fits = self.captions in (None, "txt") or str(self.captions).endswith(TABLES)
        fix = "give txt, or the name of a .jsonl or .csv file in the folder"
        require(fits, "captions", self.captions, "captions are read from no such file", fix)

    @property
    def name(self) -> str:
        return self.path

    def open(self) -> "FolderExamples":
        """The examples, ready to be read.

        Raises:
          UserError: there is no such folder or no image in it; an image has no class or no caption.
        """
        root = Path(self.path).expanduser()
        require(root.is_dir(), "path", self.path, "there is no such folder", "name a folder of images")
        paths = [path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in FORMATS]
        files = [path.as_posix() for path in sorted(paths) if not any(p.startswith(".") for p in path.parts)]
        fix = f"put {', '.join(FORMATS)} files there"
        require(bool(files), "path", self.path, "there is no image in this folder", fix)
        classes = None
        if self.label == "folder":
            loose = [file for file in files if "/" not in file]
            fix = "put it into the folder of its class, or use label=None"
            require(not loose, "label", self.label, f"{', '.join(loose[:1])} is in no subfolder", fix)
            # Of all splits: a number must not depend on which is read.
            classes = tuple(dict.fromkeys(file.split("/")[0] for file in files))
        chosen = [file for file in files if self.split in ("all", _split(file, self.test_share))]
        captions = None if self.captions is None else _captions(self, root, files, chosen)
        return FolderExamples(self, root, tuple(chosen), classes, captions)

    def fingerprint(self) -> dict[str, str | int]:
        """What was read: path, split, number of files, and a hash of their names and sizes in bytes."""
        examples = self.open()
        digest = hashlib.sha256()
        for file in examples.files:
            path = examples.root / file
            size = path.stat().st_size if path.exists() else -1  # a link to nowhere is a broken file as well
            digest.update(_name_bytes(file) + f"\0{size}\0".encode())
        length = len(examples)
        return {"name": self.path, "split": self.split, "length": length, "sha256": digest.hexdigest()}


class FolderExamples:
    """The opened examples of an `ImageFolder`.

    Attributes:
      source: the block.
      root: the folder.
      files: names relative to it, in order.
      classes: names of the classes, in the order of their labels; None without.
      image_shape, num_classes: as for every source.
      broken: files that were skipped so far.
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
        self._lock = threading.Lock()  # threads of a pipeline share the count

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """The example; if its file is broken and these are skipped, that of the next file in order."""
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
        """The image of a file, or None where it is skipped."""
        how = self.source
        try:
            picture = read_image(self.root / file, file, how.channels, how.background, how.max_pixels)
        except UserError as error:
            if how.broken == "error":
                raise UserError(f"{error}, or use broken='skip'") from None
            self._count(file)
            return None
        return square(picture, how.size, how.fit)

    def _count(self, file: str) -> None:
        with self._lock:
            self.broken.add(file)
            count, total = len(self.broken), len(self.files)
        if count == total or count > self.source.max_broken * total:
            raise UserError(
                f"max_broken={self.source.max_broken}: {count} of {total} files cannot be read, such as {file}. "
                "Fix: replace them, or raise the limit"
            )


def _split(file: str, test_share: float) -> str:
    """Which split a name is in: its hash is a number that is uniform in [0, 1)."""
    number = int.from_bytes(hashlib.sha256(_name_bytes(file)).digest()[:6], "big") / 2**48
    return "test" if number < test_share else "train"


def _name_bytes(file: str) -> bytes:
    """A name as it is stored, which need not be UTF-8."""
    return file.encode(errors="surrogateescape")


def _captions(source: ImageFolder, root: Path, files: list[str], chosen: list[str]) -> Captions:
    """The captions of the chosen files, each of which has one at least."""
    found: dict[str, list[str]] = {}
    if source.captions == "txt":
        for file in chosen:
            beside = (root / file).with_suffix(".txt")
            lines = _lines(_text_of(beside)) if beside.exists() else ()
            found[file] = [line.strip() for line in lines if line.strip()]
    else:
        known = set(files)
        for place, row in _rows(root / str(source.captions)):
            for column in (source.file_column, source.text_column):
                fix = f"name one of {', '.join(map(str, row))}"
                require(column in row, "captions", place, f"there is no column {column}", fix)
            file, text = row[source.file_column], row[source.text_column]
            exists = isinstance(file, str) and file in known
            require(exists, "captions", place, f"there is no image {file!r}", "remove the row")
            texts = text if isinstance(text, list) else [text]
            fits = all(isinstance(one, str) and one.strip() for one in texts)
            require(fits, "captions", place, "it has no caption", "give a text that is not empty")
            found.setdefault(file, []).extend(texts)
    bare = [file for file in chosen if not found.get(file)]
    why = f"{len(bare)} of {len(chosen)} images have no caption, such as {', '.join(bare[:1])}"
    require(not bare, "captions", source.captions, why, "write one for each image, or move these away")
    return found


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, each with its place in words."""
    require(table.exists(), "captions", table.name, "there is no such file in the folder", "name another")
    text = _text_of(table)
    if table.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                place = f"{table.name}:{reader.line_num}"
                fix = "put texts with commas into double quotes"
                require(None not in row, "captions", place, "it has more fields than the header", fix)
                yield place, row
        except csv.Error as error:
            place = f"{table.name}:{reader.line_num}"
            raise UserError(
                f"captions={place!r}: {error}. Fix: look for a quote that is not closed"
            ) from None
        return
    for number, line in enumerate(_lines(text), 1):
        place = f"{table.name}:{number}"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"captions={place!r}: it is no JSON: {error}. Fix: mend the line") from None
            require(isinstance(row, dict), "captions", place, "it is no object", "give one object a line")
            yield place, row


def _lines(text: str) -> Iterator[str]:
    """Ends of lines are those of files alone: `str.splitlines` would cut a caption at U+2028, too."""
    return iter(io.StringIO(text, newline=None))


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"captions={path.name!r}: at byte {error.start} it is no UTF-8. Fix: encode it as UTF-8"
        ) from None
