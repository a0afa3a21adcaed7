"""Survey of a data set: counts, shapes, buckets, damaged files and captions, for `python -m jaxdiff.data`."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdiff.data.buckets import LEFT_OUT, Assignment, Buckets
from jaxdiff.data.decoding import Unreadable
from jaxdiff.data.folder import READERS, ImageFolder
from jaxdiff.data.listing import Listing
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import Measuring, Tokenize, Tokenizer

SHOWN = 5
"""Names that a survey lists of each kind."""


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a data set looks like.

    Attributes:
      report: plain numbers, strings, lists and dicts, which JSON can hold.
      readable: positions in the listing of the images that can be read.
      assignment: the bucket of each of these; None where the images are not cut.
    """

    report: dict[str, Any]
    readable: np.ndarray
    assignment: Assignment | None


def survey(pipeline: Pipeline, listing: Listing, batch_size: int, whole: bool = False) -> Survey:
    """Examine a data set.

    Args:
      pipeline: whose data are examined.
      listing: its images and captions.
      batch_size: rows of a global batch, for the number of batches of each bucket.
      whole: decode each image, so that damage behind the header is found.

    Raises:
      UserError: there are buckets, for images of one shape.
    """
    if pipeline.buckets is not None:
        pipeline.buckets.check(listing)
    found, broken = _measured(listing, whole)
    readable = np.array(sorted(found), np.int64)
    sizes = np.array([found[i] for i in readable], np.int64).reshape(-1, 2)
    names = [listing.names[int(i)] for i in readable]
    report = {
        "source": str(getattr(pipeline.source, "name", type(pipeline.source).__name__)),
        "examples": listing.total,
        "examined": len(listing.names),
        "decoded": whole,
        "broken": broken,
        "sizes": _sizes(sizes),
        "buckets": None,
        "captions": _captions(listing, readable, tokenizer_of(pipeline)) if listing.captioned else None,
    }
    buckets = _buckets(pipeline)
    if buckets is None or not len(sizes):
        return Survey(report, readable, None)
    assignment = buckets.assign(sizes)
    report["buckets"] = _of_buckets(buckets, assignment, names, batch_size)
    return Survey(report, readable, assignment)


def tokenizer_of(pipeline: Pipeline) -> Tokenizer | None:
    """The tokenizer of the captions in a pipeline; None without any."""
    steps = (*pipeline.transforms, *pipeline.conditions)
    return next(
        (step.tokenizer for step in steps if isinstance(step, Tokenize) and step.field == "text"), None
    )


def _buckets(pipeline: Pipeline) -> Buckets | None:
    """The buckets of a pipeline: a folder that is cut to squares has one."""
    source = pipeline.source
    if pipeline.buckets is None and isinstance(source, ImageFolder) and source.size is not None:
        return Buckets(source.size, source.size, 1.0)
    return pipeline.buckets


def _measured(listing: Listing, whole: bool) -> tuple[dict[int, tuple[int, int]], dict[str, str]]:
    """The sizes of readable images by position, and why the others cannot be read, by name."""

    def measure(i: int) -> tuple[int, int] | str:
        try:
            return listing.size(i, whole)
        except Unreadable as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(READERS) as threads:
        every = list(threads.map(measure, range(len(listing.names))))
    sizes = {i: found for i, found in enumerate(every) if not isinstance(found, str)}
    return sizes, {listing.names[i]: found for i, found in enumerate(every) if isinstance(found, str)}


def _sizes(sizes: np.ndarray) -> dict[str, Any] | None:
    """How many shapes there are, and the images of the least, the middle and the largest area."""
    if not len(sizes):
        return None
    order = np.argsort(sizes.prod(axis=1), kind="stable")
    smallest, middle, largest = (sizes[order[i]].tolist() for i in (0, len(order) // 2, -1))
    distinct = len(np.unique(sizes, axis=0))
    return {"distinct": distinct, "smallest": smallest, "middle": middle, "largest": largest}


def _of_buckets(
    buckets: Buckets, assignment: Assignment, names: Sequence[str], batch_size: int
) -> dict[str, Any]:
    out = np.flatnonzero(assignment.bucket == LEFT_OUT)
    used = np.flatnonzero(assignment.bucket != LEFT_OUT)
    enlarged = used[assignment.scale[used] > 1]
    return {
        "size": buckets.size,
        "step": buckets.step,
        "batch_size": batch_size,
        "each": [_of_group(group, assignment, names, batch_size) for group in assignment.groups()],
        "left_out": _worst(out, assignment.scale, names),
        "enlarged": _worst(enlarged, assignment.scale, names),
        "most_cut": _worst(used[assignment.cut[used] > 0], assignment.cut, names),
    }


def _of_group(group: Any, assignment: Assignment, names: Sequence[str], batch_size: int) -> dict[str, Any]:
    cut, count = assignment.cut[group.indices], len(group.indices)
    return {
        "shape": list(group.shape),
        "images": count,
        "batches_per_epoch": count / batch_size,
        "mean_cut": float(cut.mean()),
        "largest_cut": float(cut.max()),
        "enlarged": int(np.sum(assignment.scale[group.indices] > 1)),
    }


def _worst(indices: np.ndarray, values: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The number of images, and the names of those with the largest values."""
    order = indices[np.argsort(-values[indices], kind="stable")][:SHOWN]
    return {"images": len(indices), "worst": {names[i]: float(values[i]) for i in order}}


def _captions(listing: Listing, readable: np.ndarray, tokenizer: Tokenizer | None) -> dict[str, Any]:
    texts = {listing.names[int(i)]: listing.texts(int(i)) for i in readable}
    every = [(name, text) for name, found in texts.items() for text in found or () if text.strip()]
    missing = [name for name, found in texts.items() if found is None]
    empty = [name for name, found in texts.items() if found is not None and not any(map(str.strip, found))]
    repeats = collections.Counter(text for _, text in every)
    return {
        "captions": len(every),
        "distinct": len(repeats),
        "missing": {"images": len(missing), "names": missing[:SHOWN]},
        "empty": {"images": len(empty), "names": empty[:SHOWN]},
        "tokens": _tokens(every, tokenizer) if isinstance(tokenizer, Measuring) and every else None,
    }


def _tokens(captions: Sequence[tuple[str, str]], tokenizer: Measuring) -> dict[str, Any]:
    """The lengths of captions in ids, and the lost ends of long ones."""
    found = [(name, text, tokenizer.measure(text, name)) for name, text in captions]
    needed = sorted(length.needed for _, _, length in found)
    cut = [(name, text, length.lost) for name, text, length in found if length.lost]
    example = max(cut, key=lambda each: len(each[2]), default=None)
    return {
        "length": found[0][2].length,
        "least": needed[0],
        "middle": needed[len(needed) // 2],
        "most": needed[-1],
        "cut": len(cut),
        "example": None if example is None else dict(zip(("name", "text", "lost"), example, strict=True)),
    }
