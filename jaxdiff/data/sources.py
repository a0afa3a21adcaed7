"""TFDS data sets: read array_record files with random access and without TensorFlow.

Configs import this module, so heavy imports wait until a source is opened.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import importlib
import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epath

from jaxdiff.errors import UserError, expect

Example = dict[str, np.ndarray]
"""One example, or a batch with a leading axis: image uint8 [height, width, channels], index int32, optionally label
int32 and further fields."""

LABEL = "label"
"""The field of class numbers; `Examples.num_classes` is about it."""

LOSS_WEIGHT = "loss_weight"
"""The field of float32 weights of the examples in the loss."""

EMBEDDED = {
    "digits": "jaxdiff.data.digits:Digits",
    "photos": "jaxdiff.data.photos:Photos",
    "scenes": "jaxdiff.data.scenes:Scenes",
}
"""Built-in data sets, prepared on first use from data that scikit-learn ships."""


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A split of a TFDS data set.

    Attributes:
      name: ``digits``, ``photos/32``, ``photos/64`` or ``scenes``, prepared on first use; or any prepared data set:
        ``cifar10``, ``imagenet_resized/64x64``, or the folder that holds its ``dataset_info.json``.
      split: a split in TFDS notation: ``train``, ``train[:10%]``, ``train+test``.
      data_dir: folder of the data sets; None for $TFDS_DATA_DIR, or ~/tensorflow_datasets if that is unset.
      image_key: feature of the image.
      label_key: feature of the class label; None for images without labels.
      text_key: feature that becomes the field `text`, a str: ``caption``, or ``captions/text`` for a nested one.
        Several captions give an array, from which `data.text.Tokenize` draws one.
      fields: further features, which become fields of the same names: a mask, another image, attributes.
    """

    places: ClassVar[tuple[str, ...]] = ("name", "data_dir")

    name: str
    split: str = "train"
    data_dir: str | None = None
    image_key: str = "image"
    label_key: str | None = "label"
    text_key: str | None = None
    fields: tuple[str, ...] = ()

    def __post_init__(self):
        expect(self.name != "", "name", self.name, "the name of a data set", "give one such as digits")
        expect(self.split != "", "split", self.split, "the name of a split", "give one such as train")
        taken = sorted({"image", "index", "label", "text"} & set(self.fields))
        fix = f"use image_key, label_key or text_key for {', '.join(taken)}"
        expect(not taken, "fields", self.fields, "names other than image, index, label and text", fix)

    def open(self) -> "TfdsExamples":
        """Open the split for random access; prepare a built-in data set first, if needed.

        Raises:
          UserError: the data set is unknown or not prepared, or has no such split or feature.
        """
        import tensorflow_datasets as tfds

        logging.getLogger("absl").addFilter(_is_not_about_opencv)
        builder = self._builder()
        try:
            records = builder.as_data_source(self.split)
        except (AssertionError, NotImplementedError):  # no files, or files without random access
            raise self._unprepared() from None
        except ValueError as error:
            splits = ", ".join(builder.info.splits)
            raise UserError(
                f"split={self.split!r}: expected a split of {self.name}, got {self.split!r} "
                f"({_first_line(error)}). Fix: use one of {splits}, or a part such as train[:10%]"
            ) from None
        features = builder.info.features
        image = self._feature(features, "image_key", self.image_key)
        fits = len(image.shape or ()) == 3 and np.dtype(image.np_dtype) == np.uint8
        expected = "a feature of uint8 images [height, width, channels]"
        expect(fits, "image_key", self.image_key, expected, "name another feature", type(image).__name__)
        num_classes, classes = None, None
        if self.label_key is not None:
            label = self._feature(features, "label_key", self.label_key)
            fits = label.shape == () and np.issubdtype(label.np_dtype, np.integer)
            fix = "name another feature, or None"
            expect(
                fits,
                "label_key",
                self.label_key,
                "a feature of integer class labels",
                fix,
                type(label).__name__,
            )
            num_classes = getattr(label, "num_classes", None)
            classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else None
        if self.text_key is not None:
            text = features
            fix = "name another feature, or None"
            for key in self.text_key.split("/"):
                inner = getattr(text, "feature", text)  # the element of a sequence
                nested = hasattr(inner, "keys")
                expect(
                    nested,
                    "text_key",
                    self.text_key,
                    f"a nested feature before /{key}",
                    fix,
                    type(inner).__name__,
                )
                text = self._feature(inner, "text_key", key)
            text = getattr(text, "feature", text)
            fits = isinstance(text, tfds.features.Text)
            expect(fits, "text_key", self.text_key, "a feature of text", fix, type(text).__name__)
        for field in self.fields:
            self._feature(features, "fields", field)
        size = sum(part.num_bytes for part in builder.info.splits.values())
        stored = f"{builder.info.full_name}, {size} bytes"
        return TfdsExamples(
            self, str(builder.version), stored, records, tuple(image.shape), num_classes, classes
        )

    def fingerprint(self) -> dict[str, str | int]:
        """Identify the data for logs and reports: name, version, split and length."""
        examples = self.open()
        return {
            "name": self.name,
            "version": examples.version,
            "split": self.split,
            "length": len(examples),
        }

    def contents(self) -> dict[str, Any]:
        """Data set, version and size, split and number of examples, wherever they lie."""
        examples = self.open()
        return {"data_set": examples.stored, "split": self.split, "length": len(examples)}

    def _builder(self) -> Any:
        """The data set's TFDS builder."""
        import tensorflow_datasets as tfds

        if self.name.partition("/")[0] in EMBEDDED:
            return _embedded(self.name, self._data_dir)
        if (epath.Path(self.name).expanduser() / "dataset_info.json").exists():
            return tfds.builder_from_directory(epath.Path(self.name).expanduser())
        if self.name.startswith(("/", ".", "~")) or "://" in self.name:
            raise UserError(
                f"name={self.name!r}: expected a folder with a dataset_info.json, got none there. "
                "Fix: name the folder of one version of the data set"
            )
        try:
            return tfds.builder(self.name, data_dir=self._data_dir)
        except tfds.core.DatasetNotFoundError as error:
            known = [*re.findall(r"^\s*- (\S+)$", str(error), re.MULTILINE), *self._prepared()]
            close = difflib.get_close_matches(self.name, known, 1, 0.6)
            fix = f"did you mean {close[0]}?" if close else f"prepared are {', '.join(self._prepared())}"
            expected = f"a data set of TFDS, got {self.name!r}"
            raise UserError(f"name={self.name!r}: expected {expected}. Fix: {fix}") from None
        except ImportError:  # the code of some data sets needs TensorFlow; once prepared, reading does not
            raise self._unprepared() from None
        except (ValueError, RuntimeError) as error:
            expected = f"a data set of TFDS, got {self.name!r} ({_first_line(error)})"
            raise UserError(f"name={self.name!r}: expected {expected}. Fix: see TFDS's catalog") from None

    @property
    def _data_dir(self) -> epath.Path:
        # TFDS reads the variable once, at import; passing the path always makes the time of import irrelevant.
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        return epath.Path(self.data_dir or default).expanduser()

    def _prepared(self) -> list[str]:
        """Names of the data sets in the data folder and of the built-in ones."""
        folders = self._data_dir.iterdir() if self._data_dir.exists() else ()
        names = {path.name for path in folders if path.is_dir() and path.name.isidentifier()}
        return sorted(names - {"downloads"} | set(EMBEDDED))

    def _unprepared(self) -> UserError:
        return UserError(
            f"name={self.name!r}: expected array_record files in {self._data_dir}, got none. "
            "Fix: prepare them once, in a temporary environment: "
            "pip install tensorflow-cpu tensorflow-datasets importlib_resources && "
            f"tfds build {self.name} --file_format=array_record --data_dir={self._data_dir}"
        )

    def _feature(self, features: Any, field: str, key: str) -> Any:
        fix = f"use one of {', '.join(features)}" + (
            ", or None" if field in ("label_key", "text_key") else ""
        )
        expect(key in features, field, key, f"a feature of {self.name}", fix)
        return features[key]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TfdsExamples:
    """The opened examples of a `Tfds` block.

    Attributes:
      source: the config block.
      version: version of the data set.
      stored: name, configuration, version and size of the data set.
      records: TFDS's random-access source.
      image_shape: (height, width, channels); None for a size that varies.
      num_classes: number of classes; None if unknown or without labels.
      classes: names of the classes; None if unknown or without labels.
    """

    source: Tfds
    version: str
    stored: str
    records: Sequence[Any]
    image_shape: tuple[int | None, ...]
    num_classes: int | None
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        example = {"image": record[self.source.image_key], "index": np.int32(index)}
        if self.source.label_key is not None:
            example["label"] = np.int32(record[self.source.label_key])
        if self.source.text_key is not None:
            example["text"] = _text(record, self.source.text_key)
        for field in self.source.fields:
            example[field] = np.asarray(record[field])
        return example

    def __repr__(self) -> str:
        return f"{self.source!r}.open()"


def _text(record: Any, key: str) -> np.ndarray:
    """The text at a path of feature names, as str: 0-d for one text, [n] for several."""
    for name in key.split("/"):
        record = record[name]
    if isinstance(record, bytes | str):
        return np.asarray(_decoded(record))
    return np.array([_decoded(text) for text in record], str)


def _decoded(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _embedded(name: str, data_dir: epath.Path) -> Any:
    """The builder of one of `EMBEDDED`; the first of several processes prepares the data."""
    name, _, config = name.partition("/")
    module, _, builder_class = EMBEDDED[name].partition(":")
    cls = getattr(importlib.import_module(module), builder_class)
    configs = [known.name for known in cls.BUILDER_CONFIGS]
    if config and config not in configs:
        choices = ", ".join(f"{name}/{known}" for known in configs) or name
        given = f"{name}/{config}"
        raise UserError(f"name={given!r}: expected {choices}, got {given!r}. Fix: choose one of these")
    arguments = {"data_dir": data_dir, "file_format": "array_record", "config": config or None}
    builder = cls(**arguments)
    if _is_prepared(builder):
        return builder
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _lock(data_dir / f".{name}.lock"):
            builder = cls(**arguments)
            if not _is_prepared(builder):  # else another process was first
                print(f"preparing {builder.info.full_name} in {data_dir} (once)", file=sys.stderr, flush=True)
                _prepare(builder)
    except OSError as error:
        raise UserError(
            f"data_dir={str(data_dir)!r}: expected a folder that can be written, got {error.strerror or error}. "
            "Fix: set TFDS_DATA_DIR or data_dir to another folder"
        ) from None
    return builder


def _is_prepared(builder: Any) -> bool:
    # TFDS's `is_prepared` logs a warning if not. The folder appears under its name once it is complete.
    return (epath.Path(builder.data_dir) / "dataset_info.json").exists()


def _prepare(builder: Any) -> None:
    """Write the data set: takes seconds, so without TFDS's progress bars, and downloads nothing."""
    with (
        tempfile.TemporaryDirectory() as downloads,  # TFDS makes this folder and leaves it empty
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        builder.download_and_prepare(download_dir=downloads)


def _is_not_about_opencv(record: logging.LogRecord) -> bool:
    """False for TFDS's advice to install OpenCV, which it logs whenever Pillow decodes the images."""
    return not record.getMessage().startswith("OpenCV is not installed")


@contextlib.contextmanager
def _lock(path: epath.Path) -> Iterator[None]:
    """Hold the lock of a file, and remove the file afterwards.

    Buckets have no locks: there TFDS's own rename, at the end of preparation, has to suffice.
    """
    if "://" in str(path):
        yield
        return
    while True:
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, even by a crash
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path))):
                continue  # its holder has removed this file; another process may hold a new one
            try:
                yield
            finally:
                path.unlink()
            return


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
