"""Metrics as folds over streams of batches.

An evaluation reads three streams in this order: ``train`` and ``test``, the real examples, and ``samples``, the images
to evaluate. A metric starts from `init`, takes in the batches of the streams that it names, and computes its values
from the final state. States are never changed in place. So the state after the real examples is the start for
every set of samples: real images for comparison, and each guidance scale.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8

from jaxdiff.errors import UserError, expect
from jaxdiff.evaluation.protocols import FeatureExtractor, Fields, SharedExtractor

Stream = Literal["train", "test", "samples"]
REAL: tuple[Stream, ...] = ("train", "test")
"""The streams of real examples, in their order."""

States = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive images of one stream.

    Attributes:
      stream: which stream: "train", "test" or "samples".
      images: uint8 [n, height, width, channels].
      fields: what else is known of each image, [n, ...]: all fields of real examples; of samples, their conditions
        and the other fields of the test examples that these belong to.
      labels: class of each image, int [n]; all 0 without classes.
      positions: number of each image in its stream, int [n].
      truth: for samples, the real images of the same conditions.
      generated: bool [n, height, width], pixels that the model generates; None for all of them. The others are known.
      repeats: uint8 [k, n, height, width, channels], k samples of the same conditions; the first is `images`.
    """

    stream: Stream
    images: UInt8[np.ndarray, "n height width channels"]
    fields: Fields
    labels: Integer[np.ndarray, "n"]
    positions: Integer[np.ndarray, "n"]
    truth: UInt8[np.ndarray, "n height width channels"] | None = None
    generated: Bool[np.ndarray, "n height width"] | None = None
    repeats: UInt8[np.ndarray, "k n height width channels"] | None = None
    _features: list[tuple[Any, np.ndarray]] = dataclasses.field(default_factory=list, repr=False)

    def features(self, extractor: FeatureExtractor) -> Shaped[np.ndarray, "n d"]:
        """Features of the images; metrics share one computation of equal extractors, and of outputs of one network.

        Raises:
          UserError: a feature is not finite.
        """
        for known, values in self._features:
            if known == extractor:
                return values
        shares = isinstance(extractor, SharedExtractor)
        found = extractor.shared(self.images) if shares else {extractor: extractor(self.images)}
        for each, values in found.items():
            finite, fix = bool(np.isfinite(values).all()), "use other weights, or float32"
            expect(finite, "features", each.name, "finite numbers", fix, "NaN or infinite ones")
        self._features.extend(found.items())
        return found[extractor]

    def rows(self, chosen: Bool[np.ndarray, "n"]) -> "Batch":
        """The part of the batch where `chosen` is true."""
        return Batch(
            self.stream,
            self.images[chosen],
            {name: values[chosen] for name, values in self.fields.items()},
            self.labels[chosen],
            self.positions[chosen],
            None if self.truth is None else self.truth[chosen],
            None if self.generated is None else self.generated[chosen],
            None if self.repeats is None else self.repeats[:, chosen],
            [(extractor, values[chosen]) for extractor, values in self._features],
        )


class Row(NamedTuple):
    """One row of a report's table.

    Attributes:
      label: name of the quantity.
      key: path of the value in `Metric.compute`, names joined by dots.
      format: turns the value into a string; the value is None where there is none.
    """

    label: str
    key: str
    format: Callable[[Any], str]


@runtime_checkable
class Metric(Protocol):
    """A metric over streams of batches. Classes that inherit from it need only the methods without defaults.

    Attributes:
      streams: names of the streams that it reads.
      needs_all: whether its state grows with the number of images, since it keeps features (or images) of all of them.
      relative: names of values that are also reported as a fraction of the same value of real images. Values that
        depend on the number of images belong here: the two sets are then compared at equal numbers.
    """

    needs_all: bool = False
    relative: tuple[str, ...] = ()

    @property
    def streams(self) -> tuple[str, ...]: ...

    def check(self, samples: int) -> None:
        """Raise `UserError` if this number of samples is too small. An `Evaluation` calls it before it compiles."""
        del samples

    def init(self) -> Any:
        """The state before the first batch."""
        ...

    def update(self, state: Any, batch: Batch) -> Any:
        """The state after one more batch of one of `streams`. `state` itself is not changed."""
        ...

    def finish(self, state: Any, stream: str) -> Any:
        """The state after the last batch of a stream of real examples: prepares what all samples share."""
        del stream
        return state

    def compute(self, state: Any) -> dict[str, Any]:
        """The values: numbers, or None, and dicts of these."""
        ...

    def table(self) -> Sequence[Row]:
        """Rows of the report's table."""
        ...

    def settings(self) -> dict[str, Any]:
        """Settings to state next to the values, such as the name of the feature space."""
        return {}

    def notes(self, values: Mapping[str, Any]) -> Sequence[str]:
        """Lines of the report's caption, from the metric's own values."""
        del values
        return ()


def init(metrics: Sequence[Metric]) -> States:
    """The states of metrics before the first batch."""
    return tuple(metric.init() for metric in metrics)


def update(metrics: Sequence[Metric], states: States, batch: Batch) -> States:
    """The states after one more batch. Metrics that do not read its stream keep theirs."""
    return tuple(
        metric.update(state, batch) if batch.stream in metric.streams else state
        for metric, state in zip(metrics, states, strict=True)
    )


def finish(metrics: Sequence[Metric], states: States, stream: str) -> States:
    """The states after a stream of real examples has ended."""
    return tuple(
        metric.finish(state, stream) if stream in metric.streams else state
        for metric, state in zip(metrics, states, strict=True)
    )


def fold(metrics: Sequence[Metric], states: States, batches: Iterable[Batch]) -> States:
    """The states after all batches."""
    for batch in batches:
        states = update(metrics, states, batch)
    return states


def compute(metrics: Sequence[Metric], states: States) -> dict[str, Any]:
    """The values of all metrics in one dict.

    Raises:
      UserError: two metrics give a value of the same name.
    """
    found: dict[str, Any] = {}
    for metric, state in zip(metrics, states, strict=True):
        values = metric.compute(state)
        for name in values:
            if name in found:
                raise UserError(
                    f"metrics={type(metric).__name__}: expected distinct names of values, got {name!r} twice. "
                    "Fix: give one of the metrics another key"
                )
        found |= values
    return found


def settings(metrics: Sequence[Metric]) -> dict[str, Any]:
    """The settings of all metrics; different values of one setting are joined to a string."""
    found: dict[str, list[Any]] = {}
    for metric in metrics:
        for name, value in metric.settings().items():
            known = found.setdefault(name, [])
            known += [value] if value not in known else []
    return {
        name: values[0] if len(values) == 1 else "; ".join(map(str, values)) for name, values in found.items()
    }
