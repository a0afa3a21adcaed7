"""Where examples come from: TFDS data sets in array_record files, read at random and without TensorFlow.

Nothing heavy is imported before a source is opened, for configs import this module.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import importlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxdiff.errors import UserError, require

Example = dict[str, np.ndarray]
"""image uint8 [height, width, channels], index int32, perhaps label int32 and others; or a batch of these."""

EMBEDDED = {
    "digits": "jaxdiff.data.digits:Digits",
    "photos": "jaxdiff.data.photos:Photos",
    "scenes": "jaxdiff.data.scenes:Scenes",
}
"""Data sets that are made when they are first used, of what scikit-learn brings along."""


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A split of a TensorFlow data set.

    Attributes:
      name: ``digits``, ``photos/32``, ``photos/64`` or ``scenes``, which are made when they are first used; or any
        prepared data set, ``cifar10``, ``imagenet_resized/64x64`` or the folder that holds its ``dataset_info.json``.
      split: ``train``, ``train[:10%]``, ``train+test`` and the like.
      data_dir: where data sets live; None for $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      image_key, label_key: names of the features; label_key=None for images without labels.
      text_key: the feature that becomes the field `text`, a str: ``caption``, or ``captions/text`` for one inside
        another. Several captions are an array of them, of which `data.text.Tokenize` draws one.
      fields: names of further features, which become fields of the same names: a mask, another image, attributes.
    """

    name: str
    split: str = "train"
    data_dir: str | None = None
    image_key: str = "image"
    label_key: str | None = "label"
    text_key: str | None = None
    fields: tuple[str, ...] = ()

    def __post_init__(self):
        require(self.name != "", "name", self.name, "it names no data set", "give a name such as digits")
        require(self.split != "", "split", self.split, "it names no split", "give a split such as train")
        taken = sorted({"image", "index", "label", "text"} & set(self.fields))
        require(not taken, "fields", self.fields, f"{', '.join(taken)} would be overwritten", "use the keys")

    def open(self) -> "TfdsExamples":
        """The examples, ready to be read.

        Raises:
          UserError: the data set is unknown or not prepared; it has no such split or feature.
        """
        import tensorflow_datasets as tfds

        builder = self._builder()
        try:
            records = builder.as_data_source(self.split)
        except (AssertionError, NotImplementedError):  # no files, or files without random access
            raise self._unprepared() from None
        except ValueError as error:
            splits = ", ".join(builder.info.splits)
            raise UserError(
                f"split={self.split!r}: {_first_line(error)}. "
                f"Fix: use one of {splits}, or a part such as train[:10%]"
            ) from None
        features = builder.info.features
        image = self._feature(features, "image_key", self.image_key)
        fits = len(image.shape or ()) == 3 and np.dtype(image.np_dtype) == np.uint8
        require(fits, "image_key", self.image_key, "this feature is no uint8 image", "name another feature")
        num_classes = None
        if self.label_key is not None:
            label = self._feature(features, "label_key", self.label_key)
            fits = label.shape == () and np.issubdtype(label.np_dtype, np.integer)
            require(fits, "label_key", self.label_key, "this feature is no class", "name another, or None")
            num_classes = getattr(label, "num_classes", None)
        if self.text_key is not None:
            text = features
            for key in self.text_key.split("/"):
                inner = getattr(text, "feature", text)  # of a sequence
                fix = "name another feature, or None"
                require(hasattr(inner, "keys"), "text_key", self.text_key, "there is nothing inside", fix)
                text = self._feature(inner, "text_key", key)
            fits = isinstance(getattr(text, "feature", text), tfds.features.Text)
            require(fits, "text_key", self.text_key, "this feature is no text", "name another, or None")
        for field in self.fields:
            self._feature(features, "fields", field)
        return TfdsExamples(self, str(builder.version), records, tuple(image.shape), num_classes)

    def fingerprint(self) -> dict[str, str | int]:
        """What was read, for logs and reports: name, version, split and length."""
        examples = self.open()
        return {
            "name": self.name,
            "version": examples.version,
            "split": self.split,
            "length": len(examples),
        }

    def _builder(self) -> Any:
        """TFDS's handle on the data set."""
        import tensorflow_datasets as tfds

        if self.name.partition("/")[0] in EMBEDDED:
            return _embedded(self.name, self._data_dir)
        if (epath.Path(self.name).expanduser() / "dataset_info.json").exists():
            return tfds.builder_from_directory(epath.Path(self.name).expanduser())
        if self.name.startswith(("/", ".", "~")) or "://" in self.name:
            raise UserError(
                f"name={self.name!r}: this folder holds no data set. Fix: name the folder of a version, "
                "with its dataset_info.json"
            )
        try:
            return tfds.builder(self.name, data_dir=self._data_dir)
        except tfds.core.DatasetNotFoundError as error:
            known = [*re.findall(r"^\s*- (\S+)$", str(error), re.MULTILINE), *self._prepared()]
            close = difflib.get_close_matches(self.name, known, 1, 0.6)
            fix = f"did you mean {close[0]}?" if close else f"prepared are {', '.join(self._prepared())}"
            raise UserError(f"name={self.name!r}: TFDS knows no such data set. Fix: {fix}") from None
        except ImportError:  # the code of some data sets needs TensorFlow; prepared, they are read without it
            raise self._unprepared() from None
        except (ValueError, RuntimeError) as error:
            raise UserError(f"name={self.name!r}: {_first_line(error)}. Fix: see tfds's catalog") from None

    @property
    def _data_dir(self) -> epath.Path:
        # TFDS reads the variable once, at its import; a path that is always given does not depend on when.
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        return epath.Path(self.data_dir or default).expanduser()

    def _prepared(self) -> list[str]:
        """Names in the data folder, and those that are there for the asking."""
        folders = self._data_dir.iterdir() if self._data_dir.exists() else ()
        names = {path.name for path in folders if path.is_dir() and path.name.isidentifier()}
        return sorted(names - {"downloads"} | set(EMBEDDED))

    def _unprepared(self) -> UserError:
        return UserError(
            f"name={self.name!r}: it is not prepared as array_record in {self._data_dir}. "
            "Fix: once, in a throw-away environment, "
            "pip install tensorflow-cpu tensorflow-datasets importlib_resources && "
            f"tfds build {self.name} --file_format=array_record --data_dir={self._data_dir}"
        )

    def _feature(self, features: Any, field: str, key: str) -> Any:
        fix = f"use one of {', '.join(features)}" + (
            ", or None" if field in ("label_key", "text_key") else ""
        )
        require(key in features, field, key, f"{self.name} has no such feature", fix)
        return features[key]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TfdsExamples:
    """The opened examples of a `Tfds` block.

    Attributes:
      source: the block.
      version: of the data set.
      records: TFDS's random-access source.
      image_shape: (height, width, channels); a size that varies is None.
      num_classes: how many labels there are; None where that is not known or there are none.
    """

    source: Tfds
    version: str
    records: Sequence[Any]
    image_shape: tuple[int | None, ...]
    num_classes: int | None

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
    """The text at a path of names, 0-d, or all texts where there are several [n]; as str."""
    for name in key.split("/"):
        record = record[name]
    if isinstance(record, bytes | str):
        return np.asarray(_decoded(record))
    return np.array([_decoded(text) for text in record], str)


def _decoded(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _embedded(name: str, data_dir: epath.Path) -> Any:
    """The builder of one of `EMBEDDED`, prepared by the one process that comes first."""
    name, _, config = name.partition("/")
    module, _, builder_class = EMBEDDED[name].partition(":")
    cls = getattr(importlib.import_module(module), builder_class)
    configs = [known.name for known in cls.BUILDER_CONFIGS]
    if config and config not in configs:
        choices = ", ".join(f"{name}/{known}" for known in configs) or name
        raise UserError(f"name={f'{name}/{config}'!r}: there is no such variant. Fix: use {choices}")
    arguments = {"data_dir": data_dir, "file_format": "array_record", "config": config or None}
    builder = cls(**arguments)
    if builder.is_prepared():
        return builder
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _lock(data_dir / f".{name}.lock"):
            builder = cls(**arguments)
            # It takes seconds and does nothing if another process was first: not worth TFDS's progress bars.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                builder.download_and_prepare()
    except OSError as error:
        raise UserError(
            f"data_dir={str(data_dir)!r}: {name} cannot be written there: {error.strerror or error}. "
            "Fix: set TFDS_DATA_DIR or data_dir to a folder that can be written"
        ) from None
    return builder


@contextlib.contextmanager
def _lock(path: epath.Path) -> Iterator[None]:
    """Hold a file's lock. Buckets have none: there TFDS's own rename, at the end of preparation, must do."""
    if "://" in str(path):
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, even by a crash
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
