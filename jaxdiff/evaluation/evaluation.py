"""Evaluation: metrics of samples, next to the same metrics of real images.

Real training images are scored in the same way, at the same number: a perfect model matches them in everything but
novelty.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

import jaxdiff
from jaxdiff.errors import expect, positive
from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation import streams
from jaxdiff.evaluation.fingerprint import Fingerprint
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, States
from jaxdiff.evaluation.metrics.bits_per_dim import Likelihood
from jaxdiff.evaluation.metrics.memorization import Memorization
from jaxdiff.evaluation.plots import tables
from jaxdiff.evaluation.plots.panel import Gallery, figure
from jaxdiff.evaluation.protocols import EvaluationInputs, Report
from jaxdiff.evaluation.requests import Requests, label_of, matching
from jaxdiff.evaluation.settings import QUANTIZATION, curves, ratio, sampling_settings

GALLERY_CLASSES, GALLERY_ROWS = 10, 6


class _RealImages(NamedTuple):
    """The state of the metrics after the real examples, and by stream their labels and fingerprints."""

    states: States
    labels: dict[str, np.ndarray]
    fingerprints: dict[str, str]
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluate samples by any metrics, at several guidance scales.

    Samples are requested of each class in turn, if the class label is the model's only condition; else under the
    conditions of the test examples. All images pass in batches; only metrics that declare it (`Metric.needs_all`) keep
    anything of each of them.

    Attributes:
      metrics: the metrics, in the order of the table.
      samples: number of samples at each guidance scale.
      guidances: guidance scales, in addition to 1 (off) and the scale of the sampling recipe.
      seed: seed of the samples' noise, and of the choice of real images to compare with.
      likelihood: measures the bits per dimension of test images; None for not at all, since it is costly.
      every: training steps between evaluations; 0 evaluates only when training ends.
    """

    metrics: tuple[Metric, ...]
    samples: int = 1000
    guidances: tuple[float, ...] = ()
    seed: int = 0
    likelihood: Likelihood | None = None
    every: int = 0

    def __post_init__(self):
        positive(self, "samples")
        expect(self.every >= 0, "every", self.every, "a number of steps >= 0", "give 0 for only at the end")
        for metric in self.metrics:
            metric.check(self.samples)

    def __call__(self, inputs: EvaluationInputs) -> Report:
        real = self._read_real(inputs)
        requests = Requests.make(inputs, self.samples, real.labels["train"], real.labels["test"])
        chosen = matching(requests.labels, real.labels["train"], self.seed)
        settings = self._settings(inputs, real.fingerprints)
        reference = self._reference(inputs, real.states, requests, chosen)
        shown = _shown(requests.labels)
        rows, images, neighbours = [], {}, {}
        for guidance in self._guidances(inputs):
            batches = self._samples(inputs, requests, guidance, real.shape)
            values, near, kept = self._column(batches, real.states, reference, chosen >= 0, shown)
            stated = {"n": self.samples, "guidance": guidance, **settings}
            rows.append({"guidance": guidance, **values, "conditions": stated})
            title = f"Samples at guidance {guidance:g}"
            images[title] = kept
            if near is not None:
                neighbours[title] = inputs.train.rows(near[shown])["image"]
        n = int((chosen >= 0).sum())
        relative = {name: 1.0 for metric in self.metrics for name in metric.relative}
        column = {**reference, tables.RELATIVE: relative}
        column["conditions"] = {"n": n, "images": "real training images", **settings}
        values = {
            "test_images": len(inputs.test),
            "train_images": len(inputs.train),
            "samples": rows,
            "real": column,
            "noise_losses": curves(inputs),
            "likelihood": self._bits(inputs, real.fingerprints),
        }
        return self._report(values, Gallery(requests.labels[shown], images, neighbours))

    def _guidances(self, inputs: EvaluationInputs) -> list[float]:
        if not inputs.conditions:
            return [1.0]
        return sorted({1.0, float(inputs.guidance), *map(float, self.guidances)})

    def _read_real(self, inputs: EvaluationInputs) -> _RealImages:
        """Pass over the real examples once."""
        states, labels, fingerprints, shape = folds.init(self.metrics), {}, {}, ()
        for stream, examples in zip(folds.REAL, (inputs.train, inputs.test), strict=True):
            fingerprint, found = Fingerprint(len(examples)), []
            for batch in streams.real(examples, stream, inputs.batch_size, label_of(inputs)):
                states, shape = folds.update(self.metrics, states, batch), batch.images.shape[1:]
                fingerprint.add(batch.images, batch.labels)
                found.append(batch.labels)
            states = folds.finish(self.metrics, states, stream)
            labels[stream], fingerprints[stream] = np.concatenate(found), fingerprint.value()
        return _RealImages(states, labels, fingerprints, shape)

    def _samples(
        self, inputs: EvaluationInputs, requests: Requests, guidance: float, shape: tuple[int, ...]
    ) -> Iterator[Batch]:
        first = 0
        found = streams.generated(inputs, requests.batch, self.samples, self.seed, guidance, shape)
        for images, fields in found:
            rows = np.arange(first, first + len(images))
            truth = fields.get("image")
            yield Batch("samples", images, fields, requests.labels[rows], rows, truth)
            first += len(images)

    def _reference(
        self, inputs: EvaluationInputs, states: States, requests: Requests, chosen: Integer[np.ndarray, "n"]
    ) -> dict[str, Any]:
        """The values of real training images of the requested classes."""
        found = np.flatnonzero(chosen >= 0)
        for first in range(0, len(found), inputs.batch_size):
            rows = found[first : first + inputs.batch_size]
            fields = inputs.train.rows(chosen[rows])
            batch = Batch("samples", fields["image"], fields, requests.labels[rows], rows)
            states = folds.update(self.metrics, states, batch)
        return folds.compute(self.metrics, states)

    def _column(
        self,
        batches: Iterator[Batch],
        states: States,
        reference: Mapping[str, Any],
        matched: np.ndarray,
        shown: Integer[np.ndarray, "m"],
    ) -> tuple[dict[str, Any], np.ndarray | None, np.ndarray]:
        """Values of the samples, the training image nearest to each, and the samples to show."""
        fair = tuple(metric for metric in self.metrics if metric.relative)
        fair_states = tuple(
            state for metric, state in zip(self.metrics, states, strict=True) if metric.relative
        )
        kept = []
        for batch in batches:
            states = folds.update(self.metrics, states, batch)
            kept.append(batch.images[np.isin(batch.positions, shown)])
            if fair and not matched.all() and matched[batch.positions].any():
                fair_states = folds.update(fair, fair_states, batch.rows(matched[batch.positions]))
        values = folds.compute(self.metrics, states)
        equal = values if matched.all() else folds.compute(fair, fair_states)
        values[tables.RELATIVE] = {
            name: ratio(equal[name], reference[name]) for metric in fair for name in metric.relative
        }
        near = [
            metric.nearest_train(state)
            for metric, state in zip(self.metrics, states, strict=True)
            if isinstance(metric, Memorization)
        ]
        return values, near[0] if near else None, np.concatenate(kept)

    def _bits(self, inputs: EvaluationInputs, fingerprints: Mapping[str, str]) -> dict[str, Any] | None:
        if self.likelihood is None or inputs.bits is None:
            return None
        return {**inputs.bits(self.likelihood), "test": fingerprints["test"]}

    def _settings(self, inputs: EvaluationInputs, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        return {
            "seed": self.seed,
            **folds.settings(self.metrics),
            "quantization": QUANTIZATION,
            **fingerprints,
            "version": jaxdiff.__version__,
            **inputs.settings,
        }

    def _report(self, values: dict[str, Any], gallery: Gallery) -> Report:
        samples, bits = values["samples"], values["likelihood"]
        columns = {f"guidance {row['guidance']:g}": row for row in samples}
        rows = tables.rows_of(self.metrics)
        table = tables.table(rows, {"real": values["real"], **columns})
        if bits is not None:
            found = (decimals(bits["bits_per_dim"]) if row["guidance"] == 1 else "-" for row in samples)
            table.append(("bits/dim of test images", "-", *found))
        caption = self._caption(values)
        image = figure(table, caption, values["noise_losses"], gallery)
        return Report(values, table, caption, image, tables.scalars(rows, columns))

    def _caption(self, values: Mapping[str, Any]) -> list[str]:
        """The settings under which the values hold, as a few lines."""
        settings, bits = values["samples"][0]["conditions"], values["likelihood"]
        features = f"{settings['features']}, " if "features" in settings else ""
        lines = [
            f"{self.samples} samples against {values['test_images']} test images, {features}seed {self.seed}",
            f"real: {values['real']['conditions']['n']} training images, scored in the same way",
        ]
        for metric in self.metrics:
            lines += metric.notes(values["samples"][0])
        lines += [sampling_settings(settings)]
        if bits is not None:
            lines.append(
                f"bits/dim: standard error {decimals(bits['standard_error'])}, {bits['n']} test images, "
                f"seed {bits['seed']}, {bits['method']}"
            )
        return [line for line in lines if line]


def _shown(labels: Sequence[int] | np.ndarray) -> Integer[np.ndarray, "m"]:
    """Positions of the samples in the figure: the first ones of the first ten classes."""
    shown = np.flatnonzero(np.isin(labels, np.unique(labels)[:GALLERY_CLASSES]))
    return shown[: GALLERY_ROWS * len(np.unique(np.asarray(labels)[shown]))]
