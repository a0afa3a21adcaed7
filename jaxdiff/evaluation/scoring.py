"""Scores of many sets of samples: the real examples are read once, and every set is compared with them."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation import streams
from jaxdiff.evaluation.fingerprint import Fingerprint
from jaxdiff.evaluation.metric import Batch, Metric, States
from jaxdiff.evaluation.protocols import EvaluationInputs, Generate
from jaxdiff.evaluation.requests import Requests, label_of, matching
from jaxdiff.evaluation.settings import ratio


class Scores(NamedTuple):
    """The scores of one set of samples.

    Attributes:
      values: of all metrics.
      equal: the values that `Metric.relative` names, at the number of real images in `Scorer.real`.
      relative: the same as fractions of the real images'.
      states: the metrics' states after the samples.
    """

    values: dict[str, Any]
    equal: dict[str, Any]
    relative: dict[str, float | None]
    states: States


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """Metrics after the real examples.

    Attributes:
      metrics: the metrics.
      inputs: the model's data.
      samples: number of samples in a set.
      seed: of the samples' noise, and of the choice of real images to compare with.
      states: the metrics' states after the real examples.
      fingerprints, counts: hash and number of the real examples, by stream.
      shape: of an image.
      requests: the conditions of the samples.
      chosen: for each sample the training image that stands for it in `real`; -1 for none.
      real: the values of these training images, scored as samples are.
    """

    metrics: tuple[Metric, ...]
    inputs: EvaluationInputs
    samples: int
    seed: int
    states: States
    fingerprints: Mapping[str, str]
    counts: Mapping[str, int]
    shape: tuple[int, ...]
    requests: Requests
    chosen: Integer[np.ndarray, "n"]
    real: Mapping[str, Any]

    @classmethod
    def read(cls, metrics: tuple[Metric, ...], inputs: EvaluationInputs, samples: int, seed: int) -> "Scorer":
        """Pass over the real examples once.

        Raises:
          UserError: `samples` are too few for the classes.
        """
        states, labels, fingerprints, shape = folds.init(metrics), {}, {}, ()
        for stream, examples in zip(folds.REAL, (inputs.train, inputs.test), strict=True):
            fingerprint, found = Fingerprint(len(examples)), []
            for batch in streams.real(examples, stream, inputs.batch_size, label_of(inputs)):
                states, shape = folds.update(metrics, states, batch), batch.images.shape[1:]
                fingerprint.add(batch.images, batch.labels)
                found.append(batch.labels)
            states = folds.finish(metrics, states, stream)
            labels[stream], fingerprints[stream] = np.concatenate(found), fingerprint.value()
        requests = Requests.make(inputs, samples, labels["train"], labels["test"])
        chosen = matching(requests.labels, labels["train"], seed)
        real = folds.compute(
            metrics, folds.fold(metrics, states, _reference(inputs, requests.labels, chosen))
        )
        counts = {stream: len(found) for stream, found in labels.items()}
        return cls(
            metrics, inputs, samples, seed, states, fingerprints, counts, shape, requests, chosen, real
        )

    def generated(self, generate: Generate, guidance: float) -> Iterator[Batch]:
        """The samples of a model, batch by batch."""
        first = 0
        found = streams.generated(
            dataclasses.replace(self.inputs, generate=generate),
            self.requests.batch,
            self.samples,
            self.seed,
            guidance,
            self.shape,
        )
        for images, fields in found:
            yield self._batch(images, fields, first)
            first += len(images)

    def kept(self, images: UInt8[np.ndarray, "n height width channels"]) -> Iterator[Batch]:
        """Samples that were generated earlier, batch by batch."""
        for first in range(0, self.samples, self.inputs.batch_size):
            rows = np.arange(first, min(first + self.inputs.batch_size, self.samples))
            yield self._batch(images[rows], self.requests.batch(rows)[1], first)

    def score(self, batches: Iterable[Batch]) -> Scores:
        """The scores of one set of samples."""
        fair = [metric for metric in self.metrics if metric.relative]
        fair_states = self._of(fair, self.states)
        states, matched = self.states, self.matched
        for batch in batches:
            states = folds.update(self.metrics, states, batch)
            rows = matched[batch.positions]
            if fair and not matched.all() and rows.any():
                fair_states = folds.update(fair, fair_states, batch.rows(rows))
        values = folds.compute(self.metrics, states)
        found = values if matched.all() else folds.compute(fair, fair_states)
        equal = {name: found[name] for metric in fair for name in metric.relative}
        return Scores(values, equal, {name: ratio(equal[name], self.real[name]) for name in equal}, states)

    @property
    def matched(self) -> Bool[np.ndarray, "n"]:
        """The samples for which a training image stands in `real`."""
        return self.chosen >= 0

    def _of(self, chosen: Iterable[Metric], states: States) -> States:
        """The states of some of the metrics."""
        found = zip(self.metrics, states, strict=True)
        return tuple(state for metric, state in found if any(metric is each for each in chosen))

    def _batch(self, images: np.ndarray, fields: Mapping[str, np.ndarray], first: int) -> Batch:
        rows = np.arange(first, first + len(images))
        return Batch("samples", images, fields, self.requests.labels[rows], rows, fields.get("image"))


def _reference(
    inputs: EvaluationInputs, labels: Integer[np.ndarray, "n"], chosen: Integer[np.ndarray, "n"]
) -> Iterator[Batch]:
    """Real training images of the requested classes, in the place of samples."""
    found = np.flatnonzero(chosen >= 0)
    for first in range(0, len(found), inputs.batch_size):
        rows = found[first : first + inputs.batch_size]
        fields = inputs.train.rows(chosen[rows])
        yield Batch("samples", fields["image"], fields, labels[rows], rows)
