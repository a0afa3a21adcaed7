"""Streams of batches: real examples, and samples as they are generated."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from jaxdiff.evaluation.metric import Batch, Stream
from jaxdiff.evaluation.protocols import EvaluationInputs, Examples, Fields

Conditions = Mapping[str, Any]


def real(examples: Examples, stream: Stream, batch_size: int, label: str | None = None) -> Iterator[Batch]:
    """Every example once, in order.

    Args:
      stream: the role of these images; real images may take the place of samples.
      label: name of the field of class labels; None if there is none.
    """
    first = 0
    for fields in examples.batches(batch_size):
        yield batch_of(stream, fields["image"], fields, first, label)
        first += len(fields["image"])


def batch_of(
    stream: Stream,
    images: np.ndarray,
    fields: Fields,
    first: int,
    label: str | None = None,
    **further: Any,
) -> Batch:
    """Consecutive images from number `first` on, with the labels that `fields` has under `label`."""
    n = len(images)
    labels = np.zeros(n, int) if label is None else np.asarray(fields[label])
    return Batch(stream, images, fields, labels, np.arange(first, first + n), **further)


def generated(
    inputs: EvaluationInputs,
    request: Callable[[Integer[np.ndarray, "rows"]], tuple[Conditions, Fields]],
    n: int,
    seed: int,
    guidance: float,
    shape: tuple[int, ...],
) -> Iterator[tuple[UInt8[np.ndarray, "rows height width channels"], Fields]]:
    """Samples 0 to n - 1 of a seed, in batches, with their fields.

    Every batch has the same size, for one compiled program: the last one is filled with copies of the last row, which
    are cut off again.

    Args:
      request: the conditions of the samples with these numbers, and the fields that belong to them.
      shape: (height, width, channels) that the samples must have.

    Raises:
      ValueError: the model generates images of another type or shape.
    """
    size = min(inputs.batch_size, n)
    for first in range(0, n, size):
        rows = np.minimum(np.arange(first, first + size), n - 1)
        conditions, fields = request(rows)
        images = inputs.generate(conditions, seed, guidance, first)
        if images.dtype != np.uint8 or images.shape != (size, *shape):
            raise ValueError(f"generate: expected uint8 {(size, *shape)}, got {images.dtype} {images.shape}")
        yield images[: n - first], {name: values[: n - first] for name, values in fields.items()}
