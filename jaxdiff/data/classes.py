"""Class tables: the names of the classes of a run. The position of a name in the table is its label."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxdiff.data.buckets import sizes_of
from jaxdiff.data.pipeline import Examples, Source, contents_of, fingerprint_of
from jaxdiff.data.quarantine import Located
from jaxdiff.data.sources import LABEL, Example
from jaxdiff.errors import UserError

Names = tuple[str, ...]

SHOWN = 12
"""Most classes that a message lists."""

DIGITS = 300
"""Digits to which numbers in names are filled up for sorting; file names are shorter."""


@runtime_checkable
class Named(Protocol):
    """Opened examples whose classes have names.

    Attributes:
      classes: name of each class, in the order of the labels; None without labels or names.
    """

    classes: Names | None


def natural(name: str) -> tuple[str, str]:
    """Key that sorts names as text, but numbers in them by value: 1, 2, 10."""
    return re.sub(r"[0-9]+", lambda run: run[0].zfill(DIGITS), name), name


def names_of(examples: Examples) -> Names | None:
    """The names of the classes of examples; None if they have none."""
    return examples.classes if isinstance(examples, Named) else None


def table_of(examples: Examples) -> Names | None:
    """The class table of examples: names, or else numbers; None without labels."""
    return names_of(examples) or numbers(examples.num_classes)


def numbers(count: int | None) -> Names | None:
    """The table of classes without names."""
    return None if count is None else tuple(map(str, range(count)))


def listed(classes: Sequence[str]) -> str:
    """The classes with their numbers in one line, shortened if they are many: ``ant=0, bee=1, cat=2``."""
    if tuple(classes) == numbers(len(classes)):
        return f"0 to {len(classes) - 1}"
    words = [f"{name}={number}" for number, name in enumerate(classes)]
    if len(words) <= SHOWN:
        return ", ".join(words)
    return f"{', '.join(words[: SHOWN - 1])}, ..., {words[-1]} ({len(words):,} classes)"


def numbered(classes: Sequence[str]) -> list[str]:
    """A line for each class: its number and its name, in two columns."""
    width = len(str(len(classes) - 1))
    return [f"{number:{width}}  {name}" for number, name in enumerate(classes)]


def some(names: Sequence[str]) -> str:
    """The first names, and how many there are if some are left out."""
    more = f", ... ({len(names):,})" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A source whose labels are the numbers of a class table.

    Classes are matched by name. Classes without names keep their numbers.

    Attributes:
      source: the data set, with its own numbers.
      classes: the table.
    """

    source: Source
    classes: Names

    def open(self) -> Examples:
        """The examples with the labels of the table.

        Raises:
          UserError: the examples have a class that the table lacks.
        """
        return relabelled(self.source.open(), self.classes)

    def fingerprint(self) -> dict[str, Any]:
        """That of the data set."""
        return fingerprint_of(self.source)

    def contents(self) -> Mapping[str, Any]:
        """Those of the data set."""
        return contents_of(self.source)


def relabelled(examples: Examples, classes: Names, whose: str = "the training data") -> Examples:
    """The examples with the labels of a table; `whose` classes these are is for the error.

    Raises:
      UserError: the examples have a class that the table lacks.
    """
    own = names_of(examples)
    if own == classes or examples.num_classes is None:
        return examples
    found = table_of(examples) or ()
    known = {name: number for number, name in enumerate(classes)}
    if own is None:  # numbers, whatever the table's names
        known = {str(number): number for number in known.values()}
    unknown = [name for name in found if name not in known]
    if unknown:
        raise UserError(
            f"classes={some(unknown)}: expected only classes of {whose} ({some(classes)}), got {some(found)}. "
            "Fix: rename or remove what is not among them, or train with these classes"
        )
    return LabelledExamples(examples, classes, [known[name] for name in found])


class LabelledExamples:
    """The opened examples of `Labelled`.

    Attributes:
      image_shape: as of the data set.
      num_classes, classes: of the table.
    """

    def __init__(self, examples: Examples, classes: Names, new_numbers: Sequence[int]):
        self.image_shape, self.classes = examples.image_shape, classes
        self.num_classes: int | None = len(classes)
        self._examples = examples
        self._new = np.asarray(new_numbers, np.int32)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        label = int(example[LABEL])
        known = 0 <= label < len(self._new)  # otherwise the pipeline reports -1
        return {**example, LABEL: np.array(self._new[label] if known else -1, np.int32)}

    def sizes(self) -> np.ndarray:
        """Height and width of each image, int [n, 2]."""
        return sizes_of(self._examples)

    def name_of(self, index: int) -> str:
        """The file of an example, if the data set has files."""
        return self._examples.name_of(index) if isinstance(self._examples, Located) else f"example {index}"

    def __repr__(self) -> str:
        return f"{self._examples!r} as {listed(self.classes)}"
