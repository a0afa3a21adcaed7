"""From stored examples to batches, in an order that is a pure function of (seed, step).

The checkpoint stores the step and nothing of the loader, so a run continues, on any number of processes, with
the batches that it would have seen. Grain is imported when batches are asked for.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxdiff.data import images
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, require


@runtime_checkable
class Examples(Protocol):
    """Examples that can be read at random: image, index and perhaps label, as `sources.Example` says."""

    image_shape: tuple[int | None, ...]
    num_classes: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class Source(Protocol):
    """The block of a config that says where examples come from."""

    def open(self) -> Examples: ...


@runtime_checkable
class Transform(Protocol):
    """An augmentation: a new example, drawn with a generator that is this example's own."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """How examples become batches.

    Attributes:
      source: where examples come from.
      transforms: augmentations of training batches, in this order.
      conditions: what follows them, and is no augmentation: fields made of the image, such as its low resolution,
        and crops that are always made. They act in `epoch` and `all` too, with draws that follow from the index alone.
      shuffle: a new order in every epoch.
      cache: decode everything once and keep it in memory; for small data sets.
      threads: that read and decode ahead; 0 reads in the caller's thread. Cached data need no more than 1.
      prefetch: batches that are held ready.
    """

    source: Source
    transforms: tuple[Transform, ...] = ()
    conditions: tuple[Transform, ...] = ()
    shuffle: bool = True
    cache: bool = False
    threads: int = 1
    prefetch: int = 4

    def __post_init__(self):
        require(self.threads >= 0, "threads", self.threads, "it counts threads", "give 0 or more")
        fix = f"give at least {max(1, self.threads)}"
        require(self.prefetch >= max(1, self.threads), "prefetch", self.prefetch, "threads would idle", fix)

    def batches(
        self, batch_size: int, seed: int, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Example]:
        """This process's rows of the batches from `start_step` on, without end.

        The processes' rows, one after the other, are the global batch: the same for every number of them.
        Batches run over the end of an epoch, so that nothing is dropped, and one batch may be larger than the
        data set (which then repeats in it).

        Args:
          batch_size: rows of the global batch.
          seed: of order and augmentations.

        Yields:
          image float32 [rows, height, width, channels] between -1 and 1; index and label int32 [rows].

        Raises:
          UserError: sizes that do not fit; later, a label or an image that is not as the data set promises.
        """
        require(batch_size > 0, "batch_size", batch_size, "a batch needs examples", "give at least 1")
        require(0 <= seed < 2**32, "seed", seed, "it is not a 32-bit number", "give 0 to 4294967295")
        require(start_step >= 0, "start_step", start_step, "steps count from 0", "give 0 or more")
        fits = 0 <= process_index < process_count
        require(fits, "process_index", process_index, f"there are {process_count}", "count them from 0")
        if batch_size % process_count:
            below = batch_size // process_count * process_count
            nearest = f"{below} or {below + process_count}" if below else str(process_count)
            raise UserError(
                f"batch_size={batch_size}: it does not divide over {process_count} processes. "
                f"Fix: use {nearest}"
            )
        dataset = self._repeated(seed, batch_size // process_count)
        return self._iterate(dataset[process_index + start_step * process_count :: process_count])

    def epoch(self, batch_size: int) -> Iterator[Example]:
        """Every example once, as stored (image uint8), with `conditions`, in order; the last batch may be smaller."""
        require(batch_size > 0, "batch_size", batch_size, "a batch needs examples", "give at least 1")
        return self._in_order(self._open(), batch_size)

    def all(self) -> Example:
        """Every example as it is stored (image uint8), with `conditions`, in one batch."""
        examples = self._open()
        return next(self._in_order(examples, len(examples)))

    def stored(self) -> "StoredExamples":
        """Random access to the examples of `epoch`. An example is read when it is needed, not before."""
        return StoredExamples(self, self._open())

    def example(self) -> Example:
        """The first example as a batch would have it, with `transforms` and `conditions`: for a look at its fields."""
        found = self._open()[0]
        for place, transform in enumerate((*self.transforms, *self.conditions)):
            found = transform(found, np.random.default_rng(place))
        return found

    def _open(self) -> Examples:
        examples = self.source.open()
        require(len(examples) > 0, "source", self.source, "it has no examples", "use another split")
        return examples

    def _repeated(self, seed: int, rows: int) -> Any:
        """Grain's data set of all the batches of `rows` examples that there will ever be."""
        import grain

        examples = _Cached(self._open()) if self.cache else self._open()
        dataset = grain.MapDataset.source(examples).seed(seed)
        if self.shuffle:
            dataset = dataset.shuffle()
        dataset = dataset.repeat(None)
        for transform in (*self.transforms, *self.conditions):
            # What it draws follows from seed, its place among them and the example's place in the order.
            dataset = dataset.random_map(transform)
        changed = bool(self.transforms or self.conditions)

        def finish(chosen: Sequence[Example]) -> Example:
            batch = _collate(chosen, None if changed else examples.image_shape, examples.num_classes)
            return {**batch, "image": images.to_float(batch["image"])}

        return dataset.batch(rows, drop_remainder=True, batch_fn=finish)

    def _in_order(self, examples: Examples, batch_size: int) -> Iterator[Example]:
        shape = None if self.conditions else examples.image_shape
        for first in range(0, len(examples), batch_size):
            rows = range(first, min(first + batch_size, len(examples)))
            yield _collate([self._conditioned(examples[i], i) for i in rows], shape, examples.num_classes)

    def _conditioned(self, example: Example, index: int) -> Example:
        for place, condition in enumerate(self.conditions):
            example = condition(example, np.random.default_rng((place, index)))
        return example

    def _iterate(self, dataset: Any) -> Iterator[Example]:
        import grain

        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.prefetch)
        iterator = iter(dataset.to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()  # its threads would outlive an interrupted run


@dataclasses.dataclass(frozen=True, eq=False)
class StoredExamples:
    """Examples as stored (image uint8), with the conditions of their pipeline. Returned by `Pipeline.stored`."""

    pipeline: Pipeline
    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, index: np.ndarray) -> Example:
        """The examples at these positions, int [n], as one batch."""
        shape = None if self.pipeline.conditions else self.examples.image_shape
        chosen = [self.pipeline._conditioned(self.examples[int(i)], int(i)) for i in index]
        return _collate(chosen, shape, self.examples.num_classes)

    def batches(self, batch_size: int) -> Iterator[Example]:
        """Every example once, in order; the last batch may be smaller."""
        return self.pipeline._in_order(self.examples, batch_size)


class _Cached:
    """Examples, all decoded and held in memory."""

    def __init__(self, examples: Examples):
        self.image_shape, self.num_classes = examples.image_shape, examples.num_classes
        self._examples = [examples[i] for i in range(len(examples))]
        for example in self._examples:
            example["image"].flags.writeable = False  # a write in place would spoil later epochs

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


def _collate(
    examples: Sequence[Example], image_shape: tuple[int | None, ...] | None, num_classes: int | None
) -> Example:
    """Examples as one batch, after a look at shapes and labels. `image_shape` None: that of the first."""
    expected = image_shape or examples[0]["image"].shape
    if None in expected:
        expected = examples[0]["image"].shape
    for example in examples:
        image = example["image"]
        if image.shape != expected or image.dtype != np.uint8:
            raise UserError(
                f"index={example['index']}: its image is {image.dtype} {image.shape}, expected uint8 "
                f"{expected}. Fix: use a data set of one image size, or a transform that makes it one"
            )
    batch = {name: _stack(name, examples) for name in examples[0]}
    if num_classes is not None:
        bad = np.flatnonzero((batch["label"] < 0) | (batch["label"] >= num_classes))
        if bad.size:
            raise UserError(
                f"index={batch['index'][bad[0]]}: its label is {batch['label'][bad[0]]}, of {num_classes} "
                "classes. Fix: use a split with labels, or label_key=None"
            )
    return batch


def _stack(name: str, examples: Sequence[Example]) -> np.ndarray:
    """One field of all examples. Arrays of another type would be converted in silence, so they are refused."""
    values = [np.asarray(example[name]) for example in examples]
    for example, value in zip(examples, values, strict=True):
        if (value.shape, value.dtype.type) != (values[0].shape, values[0].dtype.type):
            raise UserError(
                f"{name}={value.dtype}{list(value.shape)}: it is that of example {example['index']}, while example "
                f"{examples[0]['index']} has {values[0].dtype}{list(values[0].shape)}. Fix: make them alike"
            )
    return np.stack(values)
