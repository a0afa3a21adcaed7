"""Image folders: PNG, JPEG and WebP files with classes by subfolder, and captions from text files or a table."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np

from jaxdiff.data import captions as caption_files
from jaxdiff.data import loss_masks
from jaxdiff.data.captions import Captions
from jaxdiff.data.classes import natural
from jaxdiff.data.decoding import FORMATS, MAX_PIXELS, Fit, Unreadable, read_image, size_of, square
from jaxdiff.data.loss_masks import ALPHA, joined
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, between, expect, positive

TABLES = (".jsonl", ".csv")

SAMPLED, HEAD = 64, 65536
"""Files whose first bytes are part of the contents of a folder, and the number of these bytes."""

READERS = 16
"""Threads that read headers: they wait for the disk or the network."""


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The images in a folder and its subfolders, whole or cut to squares of one size, in the order of their names.

    Hidden files are skipped, and links are followed. `decoding.read_image` and `decoding.square` turn a file into
    pixels.

    Attributes:
      path: the folder.
      size: side of the square images, in pixels; None for whole images of their own sizes.
      channels: 3 for RGB or 1 for grey.
      split: "train", "test" or "all". The hash of a file's name assigns its split, so adding or removing other files
        does not move it.
      test_fraction: expected fraction of files in the test split.
      label: "folder" makes each subfolder with images a class; None for no labels. Classes are numbered in the order
        of their names, with numbers by value: 1, 2, 10. A run keeps the numbers that it started with.
      captions: source of the field `text`. None; "txt" for a .txt file of the same name next to each image, one caption
        a line; or the name of a table in the folder, .jsonl or .csv with a header. A list in .jsonl, or several rows
        of one image, give several captions: an array, from which `data.text.Tokenize` draws one.
      file_column: column of the file's path, relative to the folder.
      text_column: column of the caption.
      fit: resizing method, see `decoding.square`.
      masks: source of the field `mask`, bytes [size, size, 1] for `jaxdiff.tasks.masking.LossMask`. None; "alpha" for
        the images' alpha, and then their colours are those of the file without `background`; or another folder, with a
        grey image of the same name and size for each image.
      background: colour behind transparent pixels, red, green and blue from 0 to 255.
      broken: "error" to report an unreadable file, or "skip" to use the next readable one; see `Pipeline.max_damaged`.
      max_broken: fraction of unreadable files above which "skip" stops too.
      max_pixels: most pixels of a stored image; a larger image counts as unreadable and is not decoded.
    """

    places: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    size: int | None
    channels: Literal[1, 3] = 3
    split: Literal["train", "test", "all"] = "all"
    test_fraction: float = 0.1
    label: Literal["folder"] | None = "folder"
    captions: str | None = None
    file_column: str = "file_name"
    text_column: str = "text"
    fit: Fit = "halving"
    masks: str | None = None
    background: tuple[int, int, int] = (255, 255, 255)
    broken: Literal["error", "skip"] = "error"
    max_broken: float = 0.001
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        positive(self, "size", "max_pixels")
        between(self, "test_fraction", 0.0, 1.0)
        between(self, "max_broken", 0.0, 1.0)
        fits = all(0 <= level <= 255 for level in self.background)
        fix = "give three such numbers"
        expect(fits, "background", self.background, "red, green and blue in [0, 255]", fix)
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
        files = self.files(root)
        expect(bool(files), "path", self.path, f"{', '.join(FORMATS)} files", "put images there", "none")
        chosen = [file for file in files if self.split in ("all", _split(file, self.test_fraction))]
        classes = self._classes(files)
        captions = None if self.captions is None else self._captions(root, files, chosen)
        masks = {} if self.masks in (None, ALPHA) else loss_masks.of_files(str(self.masks), chosen)
        return FolderExamples(self, root, tuple(chosen), classes, captions, masks)

    def files(self, root: Path) -> list[str]:
        """The image files of all splits, by their paths relative to the folder `root`."""
        return [file.as_posix() for file in sorted(_files_in(root)) if file.suffix.lower() in FORMATS]

    def _classes(self, files: Sequence[str]) -> tuple[str, ...] | None:
        """The classes of the files of all splits, so that numbers do not depend on the split."""
        if self.label is None:
            return None
        loose = [file for file in files if "/" not in file]
        fix = "move it into the folder of its class, or use label=None"
        got = f"{', '.join(loose[:1])} outside of them"
        expect(not loose, "label", self.label, "all images in subfolders", fix, got)
        found = {_class_of(file) for file in files}
        odd = [name for name in found if not name.isprintable()]  # not UTF-8, or with control characters
        fix, got = "rename these folders", ", ".join(map(ascii, odd))
        expect(not odd, "path", self.path, "class folders with printable names in UTF-8", fix, got)
        return tuple(sorted(found, key=natural))

    def captions_of(self, root: Path, files: Sequence[str], chosen: Sequence[str]) -> Captions:
        """The captions of the chosen of all files of a folder; none for a file without any."""
        if self.captions == "txt":
            return caption_files.of_files(root, chosen)
        columns = self.file_column, self.text_column
        return caption_files.of_table(root, str(self.captions), columns, files)

    def _captions(self, root: Path, files: list[str], chosen: list[str]) -> Captions:
        """The captions of the chosen files, at least one each."""
        found = self.captions_of(root, files, chosen)
        bare = [file for file in chosen if not found.get(file)]
        got = f"none for {len(bare)} of {len(chosen)}, such as {', '.join(bare[:1])}"
        fix = "write one for each image, or move these images away"
        expect(not bare, "captions", self.captions, "a caption for each image", fix, got)
        return found

    def fingerprint(self) -> dict[str, str | int]:
        """Identify the data for logs and reports: path, split, number of files, hash of their names and sizes."""
        examples = self.open()
        digest = examples.hash_of_names()
        return {"name": self.path, "split": self.split, "length": len(examples), "sha256": digest.hexdigest()}

    def contents(self) -> dict[str, Any]:
        """Number of files in all and by class, and a hash: names, sizes, captions, and the first bytes of some files.

        The folder's own name is no part of it.
        """
        examples = self.open()
        digest = examples.hash_of_names()
        step = -(-len(examples) // SAMPLED) or 1
        for file in examples.files[::step]:
            digest.update(_head(examples.root / file))
        for file in examples.files if examples.captions is not None else ():
            digest.update(repr((examples.captions or {})[file]).encode(errors="surrogatepass"))
        for mask in examples.masks.values():
            digest.update(_name_bytes(mask.name) + f"\0{mask.stat().st_size}\0".encode())
        counts = collections.Counter(map(_class_of, examples.files)) if self.label == "folder" else {}
        return {"files": len(examples), "classes": dict(sorted(counts.items())), "sha256": digest.hexdigest()}


class FolderExamples:
    """The opened examples of an `ImageFolder`.

    Attributes:
      source: the config block.
      root: the folder.
      files: paths relative to `root`, in order.
      classes: class names in the order of their labels; None without labels.
      captions: the captions of each file; None without captions.
      masks: the file of each file's mask; empty without such files.
      image_shape: (size, size, channels), with None for a size that varies.
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
        masks: Mapping[str, Path],
    ):
        self.source, self.root, self.files, self.classes = source, root, files, classes
        self.captions, self.masks = captions, masks
        self.image_shape = (source.size, source.size, source.channels)
        self.num_classes = None if classes is None else len(classes)
        self.broken: set[str] = set()
        self._numbers = {name: np.int32(number) for number, name in enumerate(classes or ())}
        self._lock = threading.Lock()  # guards `broken`: threads of a pipeline share it

    @property
    def classes_of_old_runs(self) -> tuple[str, ...] | None:
        """The classes as jaxdiff numbered them before runs had a class table: numbers in names were text."""
        return None if self.classes is None else tuple(sorted(self.classes))

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Subfolders without any image, which are no classes."""
        if self.classes is None:
            return ()
        folders = (entry.name for entry in os.scandir(self.root) if _is_folder(entry))
        return tuple(sorted({name for name in folders if name[0] != "."} - set(self.classes), key=natural))

    def hash_of_names(self) -> Any:
        """SHA-256 over the names and sizes of the files; more can be added to it."""
        digest = hashlib.sha256()
        for file in self.files:
            path = self.root / file
            size = path.stat().st_size if path.exists() else -1  # a dangling link
            digest.update(_name_bytes(file) + f"\0{size}\0".encode())
        return digest

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; with ``broken="skip"``, that of the next readable file."""
        image = self._read(self.files[index])
        while image is None:
            index = (index + 1) % len(self.files)
            image = self._read(self.files[index])
        file, channels = self.files[index], self.source.channels
        example = {"image": image[..., :channels], "index": np.array(index, np.int32)}
        if self.source.masks is not None:
            example["mask"] = image[..., channels:]
        if self.classes is not None:
            example["label"] = np.array(self._numbers[_class_of(file)])
        if self.captions is not None:
            texts = self.captions[file]
            example["text"] = np.array(texts if len(texts) > 1 else texts[0])
        return example

    def __repr__(self) -> str:
        return f"{self.source!r}.open()"

    def name_of(self, index: int) -> str:
        return self.files[index]

    def sizes(self) -> np.ndarray:
        """Height and width of each stored image, int [n, 2], from the headers; zeros for one that is skipped."""
        with concurrent.futures.ThreadPoolExecutor(READERS) as threads:
            return np.array(list(threads.map(self._size, self.files)), np.int64).reshape(-1, 2)

    def _size(self, file: str) -> tuple[int, int]:
        try:
            return size_of(self.root / file, self.source.max_pixels)
        except Unreadable as error:
            if self.source.broken == "error":
                raise UserError(
                    f"{file}: expected a readable image, got {error}. "
                    "Fix: replace or remove the file, or use broken='skip'"
                ) from None
            self._count(file)
            return 0, 0

    def _read(self, file: str) -> np.ndarray | None:
        """The image of a file, with its mask as the last channel if there are masks; None if it is skipped."""
        source = self.source
        channels, limit = source.channels + (source.masks == ALPHA), source.max_pixels
        try:
            image = read_image(self.root / file, file, channels, source.background, limit)
            image = joined(image, file, self.masks[file], limit) if self.masks else image
        except UserError as error:
            if source.broken == "error":
                raise UserError(f"{error}, or use broken='skip'") from None
            self._count(file)
            return None
        return image if source.size is None else square(image, source.size, source.fit)

    def _count(self, file: str) -> None:
        with self._lock:
            self.broken.add(file)
            count, total = len(self.broken), len(self.files)
        if count == total or count > self.source.max_broken * total:
            raise UserError(
                f"max_broken={self.source.max_broken}: expected a smaller fraction of unreadable files, got {count} "
                f"of {total} files, such as {file}. Fix: replace them, or raise the limit"
            )


def _files_in(root: Path) -> Iterator[PurePosixPath]:
    """Paths in a folder and its subfolders, relative to it, without hidden ones; links to folders are followed.

    A link to a folder that contains it is left out.

    Raises:
      UserError: a subfolder cannot be read.
    """

    def walk(folder: Path, relative: PurePosixPath, above: tuple[str, ...]) -> Iterator[PurePosixPath]:
        real = os.path.realpath(folder)
        if real in above:
            return
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            got = error.strerror or "another error"
            raise UserError(
                f"path={str(folder)!r}: expected a folder that can be read, got {got}. Fix: change its permissions"
            ) from None
        for entry in entries:
            if not entry.name.startswith("."):
                yield relative / entry.name
                if _is_folder(entry):
                    yield from walk(folder / entry.name, relative / entry.name, (*above, real))

    return walk(root, PurePosixPath(), ())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _class_of(file: str) -> str:
    return file.partition("/")[0]


def _head(path: Path) -> bytes:
    """The first bytes of a file; none of what is not a file."""
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(HEAD)


def _split(file: str, test_fraction: float) -> str:
    """The split of a file: the hash of its name is a uniform number in [0, 1)."""
    number = int.from_bytes(hashlib.sha256(_name_bytes(file)).digest()[:6], "big") / 2**48
    return "test" if number < test_fraction else "train"


def _name_bytes(file: str) -> bytes:
    """The bytes of a stored name, which may not be UTF-8."""
    return file.encode(errors="surrogateescape")
