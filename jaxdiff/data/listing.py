"""Listings: the images and captions of a data set one by one, where damage is a finding and not an error."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from jaxdiff.data.decoding import Unreadable, decode, size_of
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline, Source
from jaxdiff.errors import UserError

MOST_RECORDS = 2000
"""Examples that are read of a source without files, unless all are wanted."""


class Listing(Protocol):
    """Images and captions of a data set by their positions.

    Attributes:
      names: the name of each image.
      total: number of examples of the data set, of which those in `names` are examined.
      captioned: whether there are captions.
      image_shape: as of opened examples.
    """

    total: int
    captioned: bool

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def image_shape(self) -> tuple[int | None, ...] | None: ...

    def size(self, i: int, whole: bool) -> tuple[int, int]:
        """Height and width of an image; if `whole`, it is decoded.

        Raises:
          Unreadable: it is damaged.
        """
        ...

    def texts(self, i: int) -> list[str] | None:
        """The captions of an image; None if it has no place for them, such as a file."""
        ...

    def image(self, i: int) -> np.ndarray:
        """The image as the pipeline receives it.

        Raises:
          Unreadable: it is damaged.
        """
        ...


def listing_of(pipeline: Pipeline, whole: bool) -> Listing:
    """The listing of a pipeline's data; of a source without files, all examples only if `whole`."""
    source = pipeline.source
    return Files(source) if isinstance(source, ImageFolder) else Records(source, whole)


class Files:
    """The files of an image folder."""

    def __init__(self, source: ImageFolder):
        self._source, self.captioned = source, source.captions is not None
        self._examples = dataclasses.replace(source, captions=None, broken="error").open()
        self.image_shape, self.names = self._examples.image_shape, self._examples.files
        self.total = len(self.names)
        root = self._examples.root
        self._captions = source.captions_of(root, source.files(root), self.names) if self.captioned else {}

    def size(self, i: int, whole: bool) -> tuple[int, int]:
        path, most = self._examples.root / self.names[i], self._source.max_pixels
        if not whole:
            return size_of(path, most)
        image = decode(path, most)
        return image.height, image.width

    def texts(self, i: int) -> list[str] | None:
        name = self.names[i]
        written = name in self._captions
        if self._source.captions == "txt":
            written = (self._examples.root / name).with_suffix(".txt").exists()
        return list(self._captions.get(name, ())) if written else None

    def image(self, i: int) -> np.ndarray:
        with _damage_is_a_finding():
            return self._examples[i]["image"]


class Records:
    """Examples of any source, evenly spaced."""

    def __init__(self, source: Source, whole: bool):
        self._examples = source.open()
        self.image_shape = self._examples.image_shape
        self.total = len(self._examples)
        count = self.total if whole else min(self.total, MOST_RECORDS)
        self._positions = [i * self.total // count for i in range(count)]
        self.names = [f"example {position}" for position in self._positions]
        self.captioned = "text" in self._examples[0]

    def size(self, i: int, whole: bool) -> tuple[int, int]:
        height, width, *_ = self.image(i).shape
        return height, width

    def texts(self, i: int) -> list[str] | None:
        found = self._example(i).get("text")
        return None if found is None else [_text(each) for each in np.atleast_1d(found).tolist()]

    def image(self, i: int) -> np.ndarray:
        return self._example(i)["image"]

    def _example(self, i: int) -> dict[str, Any]:
        with _damage_is_a_finding():
            return self._examples[self._positions[i]]


@contextlib.contextmanager
def _damage_is_a_finding() -> Iterator[None]:
    try:
        yield
    except (UserError, OSError, ValueError) as error:
        raise Unreadable(" ".join(str(error).partition(". Fix:")[0].split())[:200]) from None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
