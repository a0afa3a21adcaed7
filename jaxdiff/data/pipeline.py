"""Input pipeline: turns stored examples into batches, in an order that is a pure function of (seed, step).

A checkpoint stores the step and no state of the loader. A resumed run therefore reads the same batches as an
uninterrupted one, on any number of processes. Grain is imported on first use.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxdiff.data.buckets import Buckets, Chosen, Group, Size, sizes_of
from jaxdiff.data.collation import collate
from jaxdiff.data.interleaving import Interleaved
from jaxdiff.data.quarantine import Quarantined
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, between, expect


@runtime_checkable
class Examples(Protocol):
    """Random-access examples, see `sources.Example`. Those with names of classes are also `classes.Named`.

    Attributes:
      image_shape: shape of the field `image`, with None for a size that varies; None without such a field.
      num_classes: number of values of the field `label`; None if unknown, or without such a field.
    """

    image_shape: tuple[int | None, ...] | None
    num_classes: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class Source(Protocol):
    """Config block of a data set."""

    def open(self) -> Examples:
        """The examples, ready to be read."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A source that states what its examples are."""

    def fingerprint(self) -> dict[str, Any]:
        """Name, version or hash, split and length, for logs and reports."""
        ...


@runtime_checkable
class Recorded(Protocol):
    """A source whose contents a run records, so that it only continues with the same data.

    Its class attribute `places` names the fields that say where the data lie; they may change.
    """

    def contents(self) -> Mapping[str, Any]:
        """What the examples are, wherever they lie: counts and hashes, as JSON values."""
        ...


@runtime_checkable
class Transform(Protocol):
    """Augmentation: returns a new example, drawn with a generator of this example's own."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example: ...


@runtime_checkable
class Choice(Transform, Protocol):
    """A transform that draws one of a few results, so that all of them can be stored.

    ``transform(example, rng)`` is ``transform.result(example, transform.choose(transform.count(example), rng))``.
    """

    def count(self, example: Example) -> int:
        """The number of results for this example."""
        ...

    def choose(self, count: int, rng: np.random.Generator) -> int:
        """The draw: which of `count` results."""
        ...

    def result(self, example: Example, choice: int) -> Example:
        """One of the results. The first is the example without this augmentation, if there is such a result."""
        ...


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Input pipeline: reads, augments and batches the examples of a source.

    Attributes:
      source: the data set.
      transforms: augmentations of training batches, applied in this order.
      conditions: transforms that follow and apply everywhere: fields computed from the image, such as its low
        resolution, and fixed crops. In `epoch` and `all` their draws depend on the index alone.
      shuffle: whether each epoch has a new random order.
      cache: decode all examples once and keep them in memory; for small data sets.
      threads: number of threads that read and decode ahead; 0 reads in the caller's thread. Cached data need at
        most 1.
      prefetch: number of batches held ready.
      buckets: cut images of many shapes to a few, after `transforms` and before `conditions`. Each training batch has
        one shape, and everything else has the square one. None for images of one shape.
      max_damaged: fraction of damaged examples above which training stops; up to it the next intact one takes the
        place of each, see `quarantine.Quarantined`.
      encoded: folder of the cache that ``jaxdiff.cache`` has made of these examples. `jaxdiff.train` reads its batches
        there; everything else reads the source.
    """

    source: Source
    transforms: tuple[Transform, ...] = ()
    conditions: tuple[Transform, ...] = ()
    shuffle: bool = True
    cache: bool = False
    threads: int = 1
    prefetch: int = 4
    buckets: Buckets | None = None
    encoded: str | None = None
    max_damaged: float = 0.001

    def __post_init__(self):
        expect(self.threads >= 0, "threads", self.threads, "a number of threads >= 0", "give 0 or more")
        fix = "train from the images, or with images of one shape"
        one = self.encoded is None or self.buckets is None
        expect(one, "encoded", self.encoded, "no buckets, since a cache holds images of one shape", fix)
        between(self, "max_damaged", 0.0, 1.0)
        least = max(1, self.threads)
        expected = f"at least {least}, one batch per thread"
        expect(self.prefetch >= least, "prefetch", self.prefetch, expected, f"give {least} or more")

    def batches(
        self, batch_size: int, seed: int, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Example]:
        """Endless iterator over this process's rows of the batches from `start_step` on.

        The rows of all processes, concatenated in order, are the global batch: the same for any number of
        processes. Batches cross the end of an epoch, so no example is dropped. A batch larger than the data set
        repeats examples. With buckets, each has an order of its own, and as many of the batches as it has of the
        examples.

        Args:
          batch_size: rows of the global batch.
          seed: seed of the order and the augmentations, 0 to 2**32 - 1.
          start_step: step of the first batch, 0-based.
          process_index: this process, 0-based.
          process_count: number of processes.

        Yields:
          Every field as it is stored, [rows, ...]: images are uint8 [rows, height, width, channels], index and label
          int32 [rows].

        Raises:
          UserError: an argument is out of range or does not divide; while iterating, an image or a label does
            not match what the data set declares.
        """
        expect(batch_size > 0, "batch_size", batch_size, "a number of examples > 0", "give at least 1")
        expect(0 <= seed < 2**32, "seed", seed, "a 32-bit number", "give 0 to 4294967295")
        expect(start_step >= 0, "start_step", start_step, "a step >= 0", "give 0 or more")
        expected = f"0 <= process_index < {process_count}, the number of processes"
        fits = 0 <= process_index < process_count
        expect(fits, "process_index", process_index, expected, "count processes from 0")
        if batch_size % process_count:
            below = batch_size // process_count * process_count
            nearest = f"{below} or {below + process_count}" if below else str(process_count)
            raise UserError(
                f"batch_size={batch_size}: expected a multiple of the {process_count} processes, "
                f"got {batch_size}. Fix: use {nearest}"
            )
        examples, rows = self._open(), batch_size // process_count
        groups = self._groups(examples, batch_size)
        examples = Quarantined(examples, self.max_damaged, 1 / process_count)
        examples = _Cached(examples) if self.cache else examples
        every = [self._repeated(examples, group, seed, rows) for group in groups]
        mine = [dataset[process_index::process_count] for dataset in every]
        counts = [len(group.indices) for group in groups]
        return self._iterate(Interleaved(mine, counts, seed), start_step)

    def epoch(self, batch_size: int) -> Iterator[Example]:
        """Every example once, in stored order, with `conditions`; the last batch may be smaller."""
        expect(batch_size > 0, "batch_size", batch_size, "a number of examples > 0", "give at least 1")
        return self._in_order(self._open(), batch_size)

    def all(self) -> Example:
        """All examples as one batch, in stored order, with `conditions`."""
        examples = self._open()
        return next(self._in_order(examples, len(examples)))

    def stored(self) -> "StoredExamples":
        """Random access to the examples of `epoch`. An example is read when it is needed, not before."""
        return StoredExamples(self, self._open())

    def example(self) -> Example:
        """The first example with `transforms` and `conditions` applied: shows which fields a batch has."""
        return self._transformed(Quarantined(self._open(), self.max_damaged)[0])

    def prototypes(self, batch_size: int) -> list[Example]:
        """An example of each shape of training batches, as by `example`."""
        examples = self._open()
        groups, examples = self._groups(examples, batch_size), Quarantined(examples, self.max_damaged)
        return [self._transformed(examples[int(group.indices[0])], group.shape) for group in groups]

    def notes(self, batch_size: int) -> list[str]:
        """What buckets do to the images of training, in lines to print; none without buckets."""
        if self.buckets is None:
            return []
        return list(self.buckets.notes(self.buckets.assign(sizes_of(self._open())), batch_size))

    def num_classes(self) -> int | None:
        """Number of values of the field `label`; None if unknown, or without such a field."""
        return self.source.open().num_classes

    def fingerprint(self) -> dict[str, Any]:
        """What the examples are, for logs and reports; at least a name and the length."""
        return fingerprint_of(self.source)

    def _open(self) -> Examples:
        examples = self.source.open()
        expect(
            len(examples) > 0,
            "source",
            self.source,
            "at least one example",
            "use another split",
            "no examples",
        )
        if self.buckets is not None:
            self.buckets.check(examples)
        return examples

    def _groups(self, examples: Examples, batch_size: int) -> list[Group]:
        """The examples whose images have one shape in a batch: those of each bucket, or all."""
        if self.buckets is None:
            return [Group(None, range(len(examples)))]
        return self.buckets.groups(self.buckets.assign(sizes_of(examples)), batch_size)

    def _steps(self, shape: Size | None = None) -> tuple[Transform, ...]:
        """What follows the transforms: cut to a bucket, by default the square one, and conditions."""
        return self.conditions if self.buckets is None else (self.buckets.cover(shape), *self.conditions)

    def _transformed(self, example: Example, shape: Size | None = None) -> Example:
        for position, transform in enumerate((*self.transforms, *self._steps(shape))):
            example = transform(example, np.random.default_rng(position))
        return example

    def _repeated(self, examples: Examples, group: Group, seed: int, rows: int) -> Any:
        """Grain's endless data set of batches of `rows` examples of a group."""
        import grain

        dataset = grain.MapDataset.source(Chosen(examples, group.indices)).seed(_seed_of(group, seed))
        if self.shuffle:
            dataset = dataset.shuffle()
        dataset = dataset.repeat(None)
        transforms = (*self.transforms, *self._steps(group.shape))
        for transform in transforms:
            # Its draws follow from the seed, its position in the chain and the example's position in the order.
            dataset = dataset.random_map(transform)
        shape = None if transforms else examples.image_shape

        def stack(chosen: Sequence[Example]) -> Example:
            return collate(chosen, shape, examples.num_classes)

        return dataset.batch(rows, drop_remainder=True, batch_fn=stack)

    def _in_order(self, examples: Examples, batch_size: int) -> Iterator[Example]:
        shape = None if self._steps() else examples.image_shape
        for first in range(0, len(examples), batch_size):
            rows = range(first, min(first + batch_size, len(examples)))
            yield collate([self._conditioned(examples[i], i) for i in rows], shape, examples.num_classes)

    def _conditioned(self, example: Example, index: int) -> Example:
        for position, condition in enumerate(self._steps()):
            example = condition(example, np.random.default_rng((position, index)))
        return example

    def _iterate(self, batches: Any, start_step: int) -> Iterator[Example]:
        import grain

        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.prefetch)
        iterator = iter(grain.MapDataset.source(batches)[start_step:].to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()  # otherwise its threads outlive an interrupted run


def fingerprint_of(source: Source) -> dict[str, Any]:
    """What the examples of a source are, for logs and reports; at least a name and the length."""
    if isinstance(source, Fingerprinted):
        return source.fingerprint()
    return {"name": type(source).__name__, "length": len(source.open())}


def contents_of(source: Source) -> dict[str, Any]:
    """What the examples of a source are, wherever they lie; at least their number."""
    return dict(source.contents()) if isinstance(source, Recorded) else {"length": len(source.open())}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredExamples:
    """Examples as stored (image uint8), with the conditions of their pipeline. Returned by `Pipeline.stored`."""

    pipeline: Pipeline
    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, index: np.ndarray) -> Example:
        """The examples at these positions, int [n], as one batch."""
        shape = None if self.pipeline._steps() else self.examples.image_shape
        chosen = [self.pipeline._conditioned(self.examples[int(i)], int(i)) for i in index]
        return collate(chosen, shape, self.examples.num_classes)

    def batches(self, batch_size: int) -> Iterator[Example]:
        """Every example once, in order; the last batch may be smaller."""
        return self.pipeline._in_order(self.examples, batch_size)


def _seed_of(group: Group, seed: int) -> int:
    """The seed of the order of a group: buckets are shuffled independently of each other."""
    if group.shape is None:
        return seed
    return int(np.random.SeedSequence((seed, *group.shape)).generate_state(1)[0])


class _Cached:
    """Decoded examples, held in memory."""

    def __init__(self, examples: Examples):
        self.image_shape, self.num_classes = examples.image_shape, examples.num_classes
        self._examples = [examples[i] for i in range(len(examples))]
        for example in self._examples:
            for value in example.values():
                if isinstance(value, np.ndarray):
                    value.flags.writeable = False  # an in-place write would corrupt later epochs

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]
