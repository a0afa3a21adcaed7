"""Several sources as one, each with its share of what is seen."""

import dataclasses
from typing import Any

import numpy as np

from jaxdiff.data.pipeline import Examples, Source
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, require


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Examples of several sources, evenly interleaved.

    An epoch is as long as it takes to see every example of every source once; those of sources that are small for
    their weight come several times in it. With `Pipeline(shuffle=True)` the shares hold in every epoch, exactly, and in
    a batch on average.

    Attributes:
      sources: whose examples have the same fields, and the same classes if any.
      weights: how often each is seen, up to a factor; by default in proportion to its size.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        count = len(self.sources)
        require(count > 0, "sources", self.sources, "there is nothing to mix", "give at least one")
        fits = self.weights is None or (len(self.weights) == count and min(self.weights) > 0)
        fix = "give a number > 0 for each, or None"
        require(fits, "weights", self.weights, f"these are no weights of {count} sources", fix)

    @property
    def name(self) -> str:
        return " + ".join(str(getattr(source, "name", source)) for source in self.sources)

    def open(self) -> "MixtureExamples":
        """The examples, ready to be read.

        Raises:
          UserError: a source cannot be opened, is empty, or has other fields or classes than the first.
        """
        parts = [source.open() for source in self.sources]
        for i, part in enumerate(parts):
            require(len(part) > 0, f"sources[{i}]", self.sources[i], "it has no examples", "leave it out")
            for what, first, other in (
                ("classes", parts[0].num_classes, part.num_classes),
                ("fields", sorted(parts[0][0]), sorted(part[0])),
            ):
                if first != other:
                    raise UserError(
                        f"sources[{i}]={self.sources[i]!r}: it has other {what} than the first, {other} instead of "
                        f"{first}. Fix: make them alike, for instance without labels"
                    )
        weights = [float(len(part)) for part in parts] if self.weights is None else list(self.weights)
        return MixtureExamples(self, parts, weights)

    def fingerprint(self) -> dict[str, Any]:
        """What was read: the length and weights of the mixture, and the fingerprints of its sources."""
        return {
            "name": self.name,
            "length": len(self.open()),
            "weights": None if self.weights is None else list(self.weights),
            "sources": [source.fingerprint() for source in self.sources],
        }


class MixtureExamples:
    """The opened examples of a `Mixture`; `index` is that of the mixture, and the field `origin` numbers the source.

    Attributes:
      image_shape: that of the sources; a size in which they differ is None.
      num_classes: that of each source.
    """

    def __init__(self, source: Mixture, parts: list[Examples], weights: list[float]):
        shapes = [tuple(part.image_shape) for part in parts]
        self.image_shape = tuple(
            sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)
        )
        self.num_classes = parts[0].num_classes
        self._source, self._parts = source, parts
        # The source that is largest for its weight is seen once, so that the others are seen at least once.
        unit = max(len(part) / weight for part, weight in zip(parts, weights, strict=True))
        self._counts = [round(weight * unit) for weight in weights]

    def __len__(self) -> int:
        return sum(self._counts)

    def __getitem__(self, index: int) -> Example:
        origin, place = self._locate(index)
        part = self._parts[origin]
        example = part[place % len(part)]
        return {**example, "index": np.array(index, np.int32), "origin": np.array(origin, np.int32)}

    def _locate(self, index: int) -> tuple[int, int]:
        """Which source an index is of, and how many of that source come before it.

        The first source is spread evenly over all places, the second over those that are left, and so on. Grain's own
        mixture does the same, but rounds weights to hundredths of the smallest: some examples would not be seen.
        """
        left = len(self)
        for origin, count in enumerate(self._counts):
            before = index * count // left
            if (index + 1) * count // left > before:
                return origin, before
            index, left = index - before, left - count
        raise IndexError(index)

    def __repr__(self) -> str:
        return f"{self._source!r}.open()"
