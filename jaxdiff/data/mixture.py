"""Mixtures of data sources with fixed weights."""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxdiff.data.buckets import sizes_of
from jaxdiff.data.classes import Names, names_of, relabelled
from jaxdiff.data.interleaving import locate
from jaxdiff.data.pipeline import Examples, Source, contents_of, fingerprint_of
from jaxdiff.data.sources import LOSS_WEIGHT, Example
from jaxdiff.errors import UserError, expect


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Interleaves the examples of several sources evenly.

    An epoch is the shortest sequence with every example of every source; examples of a source that is small for its
    weight repeat in it. With `Pipeline(shuffle=True)` the weights hold exactly in every epoch, and on average in a
    batch.

    Attributes:
      sources: sources whose examples have the same fields. Their classes are those of the first, matched by name.
      weights: relative frequency of each source; None for frequencies in proportion to their sizes.
      loss_weights: weight of each source's examples in the loss, their field `LOSS_WEIGHT`; None for no such field.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...] | None = None
    loss_weights: tuple[float, ...] | None = None

    def __post_init__(self):
        count = len(self.sources)
        expect(count > 0, "sources", self.sources, "at least one source", "give one")
        fits = self.weights is None or (len(self.weights) == count and min(self.weights) > 0)
        expect(fits, "weights", self.weights, f"{count} numbers > 0", "give one for each source, or None")
        given = self.loss_weights
        fits = given is None or (len(given) == count and all(0 <= weight < math.inf for weight in given))
        expect(fits, "loss_weights", given, f"{count} numbers >= 0", "give one for each source, or None")

    @property
    def name(self) -> str:
        return " + ".join(str(getattr(source, "name", source)) for source in self.sources)

    def open(self) -> "MixtureExamples":
        """Open all sources.

        Raises:
          UserError: a source cannot be opened, is empty, differs from the first in fields, or has other classes.
        """
        parts = [source.open() for source in self.sources]
        for i, part in enumerate(parts):
            field, fix = f"sources[{i}]", "remove it"
            expect(len(part) > 0, field, self.sources[i], "at least one example", fix, "no examples")
            self._expect_same(i, "fields", sorted(parts[0][0]), sorted(part[0]))
            table = names_of(parts[0])
            if table is None or names_of(part) is None:
                self._expect_same(i, "classes", parts[0].num_classes, part.num_classes)
            else:
                parts[i] = relabelled(part, table, whose="the first source")
        weights = [float(len(part)) for part in parts] if self.weights is None else list(self.weights)
        return MixtureExamples(self, parts, weights)

    def _expect_same(self, i: int, kind: str, first: Any, other: Any) -> None:
        if first != other:
            raise UserError(
                f"sources[{i}]={self.sources[i]!r}: expected the {kind} of the first source, {first}, got {other}. "
                "Fix: make the sources equal, for example without labels"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Identify the data for logs and reports: length, weights, and the fingerprints of the sources."""
        return {
            "name": self.name,
            "length": len(self.open()),
            "weights": None if self.weights is None else list(self.weights),
            "sources": [fingerprint_of(source) for source in self.sources],
        }

    def contents(self) -> dict[str, Any]:
        """Those of the sources."""
        return {"sources": [contents_of(source) for source in self.sources]}


class MixtureExamples:
    """The opened examples of a `Mixture`; `index` counts in the mixture, and the field `origin` numbers the source.

    Attributes:
      image_shape: (height, width, channels) of all sources, with None for a size in which they differ.
      num_classes, classes: of the first source.
    """

    def __init__(self, source: Mixture, parts: list[Examples], weights: list[float]):
        shapes = [part.image_shape for part in parts if part.image_shape is not None]
        same = (sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))
        self.image_shape = tuple(same) if len(shapes) == len(parts) else None
        self.num_classes = parts[0].num_classes
        self.classes = names_of(parts[0])
        self._source, self._parts = source, parts
        # The source that is largest for its weight is read once, so the others are read at least once.
        unit = max(len(part) / weight for part, weight in zip(parts, weights, strict=True))
        self._counts = [round(weight * unit) for weight in weights]

    @property
    def classes_of_old_runs(self) -> Names | None:
        """The classes as jaxdiff numbered them before runs had a class table; see `folder.FolderExamples`."""
        return getattr(self._parts[0], "classes_of_old_runs", self.classes)

    @property
    def empty_classes(self) -> Names:
        """Folders without images in any source; see `folder.FolderExamples`."""
        return tuple(name for part in self._parts for name in getattr(part, "empty_classes", ()))

    def __len__(self) -> int:
        return sum(self._counts)

    def __getitem__(self, index: int) -> Example:
        origin, position = locate(index, self._counts)
        part = self._parts[origin]
        example = {**part[position % len(part)], "index": np.array(index, np.int32)}
        if self._source.loss_weights is not None:
            example[LOSS_WEIGHT] = np.array(self._source.loss_weights[origin], np.float32)
        return {**example, "origin": np.array(origin, np.int32)}

    def sizes(self) -> np.ndarray:
        """Height and width of each image, int [n, 2]."""
        parts = [sizes_of(part) for part in self._parts]
        places = (locate(index, self._counts) for index in range(len(self)))
        return np.array([parts[origin][position % len(parts[origin])] for origin, position in places])

    def __repr__(self) -> str:
        return f"{self._source!r}.open()"
