"""Examples from arrays in memory, for notebooks and scripts: ``train(config, source=Arrays(image=x, label=y))``."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, expect

NAME = "arrays in memory"


class Arrays:
    """A source of examples from arrays in memory; also its own opened examples.

    Args:
      num_classes: number of values of `label`; one more than the largest label if None.
      classes: name of each class, in the order of the labels; None for classes without names.
      **fields: arrays [examples, ...] of equal length, such as ``image`` (uint8 [examples, height, width, channels])
        and ``label`` (integers [examples]). Texts are lists of str.

    Raises:
      UserError: no fields, lengths that differ, labels that are not whole numbers >= 0, or names that do not fit them.
    """

    def __init__(
        self, *, num_classes: int | None = None, classes: Sequence[str] | None = None, **fields: Any
    ):
        expect(
            bool(fields),
            "fields",
            sorted(fields),
            "at least one array",
            "give image=..., for example",
            "none",
        )
        expect("index" not in fields, "fields", sorted(fields), "other names than index", "rename the field")
        self.fields = {name: np.asarray(values) for name, values in fields.items()}
        lengths = {name: len(values) if values.ndim else 0 for name, values in self.fields.items()}
        equal = len(set(lengths.values())) == 1 and min(lengths.values()) > 0
        expect(
            equal,
            "fields",
            sorted(fields),
            "arrays of one length > 0",
            "give a row for each example",
            str(lengths),
        )
        image = self.fields.get("image")
        self.image_shape = None if image is None else tuple(image.shape[1:])
        self.num_classes = num_classes
        self.classes = None if classes is None else tuple(map(str, classes))
        if "label" in self.fields:
            self._check_names()
            self._check_labels()
        else:
            for name, value in (("num_classes", num_classes), ("classes", self.classes)):
                expect(value is None, name, value, "None without a field label", "give label=...")

    def open(self) -> "Arrays":
        return self

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def __getitem__(self, index: int) -> Example:
        return {name: np.asarray(values[index]) for name, values in self.fields.items()} | {
            "index": np.asarray(index, np.int32)
        }

    def fingerprint(self) -> dict[str, Any]:
        """Length, and SHA-256 over the names, types, shapes and bytes of all arrays."""
        return dataclasses.asdict(self.recorded()) | {"name": NAME}

    def recorded(self) -> "RecordedArrays":
        """What a run's config keeps of these examples."""
        digest = hashlib.sha256()
        for name, values in sorted(self.fields.items()):
            digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return RecordedArrays(tuple(sorted(self.fields)), len(self), digest.hexdigest(), self.classes)

    def _check_names(self) -> None:
        if self.classes is None:
            return
        expect(
            len(set(self.classes)) == len(self.classes),
            "classes",
            self.classes,
            "distinct names",
            "rename a class",
        )
        count = len(self.classes)
        fix = "give one of the two"
        fits = self.num_classes in (None, count)
        expect(fits, "num_classes", self.num_classes, f"the number of names in classes, {count}", fix)
        self.num_classes = count

    def _check_labels(self) -> None:
        labels = self.fields["label"]
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or np.any(labels < 0):
            given = f"{labels.dtype}{list(labels.shape)}"
            raise UserError(
                f"label={given}: expected whole numbers >= 0, one for each example, got {labels.flat[0]!r}, .... "
                "Fix: give such an array"
            )
        self.fields["label"] = labels.astype(np.int32)
        largest = int(labels.max())
        if self.num_classes is None:
            self.num_classes = largest + 1
        fix = "give a larger num_classes, or other labels"
        expect(largest < self.num_classes, "label", largest, f"classes from 0 to {self.num_classes - 1}", fix)


@dataclasses.dataclass(frozen=True)
class RecordedArrays:
    """The record of examples that were arrays in memory; it cannot be opened.

    Attributes:
      fields: names of the arrays.
      length: number of examples.
      sha256: hash of the arrays, see `Arrays.fingerprint`. A run is only continued with the same arrays.
      classes: names of the classes; None for classes without names.
    """

    fields: tuple[str, ...]
    length: int
    sha256: str
    classes: tuple[str, ...] | None = None

    def open(self) -> Arrays:
        raise UserError(
            f"config.data.source=RecordedArrays: expected a source that can be read, got a record of {self.length} "
            f"examples that were {NAME}. Fix: call jaxdiff.train.train with source=Arrays(...)"
        )

    def fingerprint(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"name": NAME}
