"""Evaluation: metrics of samples, next to the same metrics of real images.

Real training images are scored in the same way, at the same number: a perfect model matches them in everything but
novelty.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

import jaxdiff
from jaxdiff.errors import expect, positive
from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, States
from jaxdiff.evaluation.metrics.bits_per_dim import Likelihood
from jaxdiff.evaluation.metrics.memorization import Memorization
from jaxdiff.evaluation.plots import tables
from jaxdiff.evaluation.plots.panel import Gallery, figure
from jaxdiff.evaluation.protocols import EvaluationInputs, Report
from jaxdiff.evaluation.scoring import Scorer
from jaxdiff.evaluation.settings import QUANTIZATION, check_sampling, curves, sampling_settings

GALLERY_CLASSES, GALLERY_ROWS = 10, 6


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
        fix = "name one, such as jaxdiff.evaluation.metrics.frechet:Frechet"
        expect(len(self.metrics) > 0, "metrics", self.metrics, "at least one metric", fix)
        check_sampling(self.seed, self.guidances)
        expect(self.every >= 0, "every", self.every, "a number of steps >= 0", "give 0 for only at the end")
        for metric in self.metrics:
            metric.check(self.samples)

    def __call__(self, inputs: EvaluationInputs) -> Report:
        scorer = Scorer.read(self.metrics, inputs, self.samples, self.seed)
        settings = self._settings(inputs, scorer.fingerprints)
        labels, shown = scorer.requests.labels, _shown(scorer.requests.labels)
        rows, images, neighbours = [], {}, {}
        for guidance in self._guidances(inputs):
            kept: list[np.ndarray] = []
            batches = _keeping(scorer.generated(inputs.generate, guidance), shown, kept)
            scores = scorer.score(batches)
            stated = {"n": self.samples, "guidance": guidance, **settings}
            values = {**scores.values, tables.RELATIVE: scores.relative}
            rows.append({"guidance": guidance, **values, "conditions": stated})
            title = f"Samples at guidance {guidance:g}"
            images[title] = np.concatenate(kept)
            for near in self._nearest(scores.states)[:1]:
                neighbours[title] = inputs.train.rows(near[shown])["image"]
        n = int(scorer.matched.sum())
        relative = {name: 1.0 for metric in self.metrics for name in metric.relative}
        column = {**scorer.real, tables.RELATIVE: relative}
        column["conditions"] = {"n": n, "images": "real training images", **settings}
        values = {
            "test_images": len(inputs.test),
            "train_images": len(inputs.train),
            "samples": rows,
            "real": column,
            "noise_losses": curves(inputs),
            "likelihood": self._bits(inputs, scorer.fingerprints),
        }
        return self._report(values, Gallery(labels[shown], images, neighbours))

    def _guidances(self, inputs: EvaluationInputs) -> list[float]:
        if not inputs.conditions:
            return [1.0]
        return sorted({1.0, float(inputs.guidance), *map(float, self.guidances)})

    def _nearest(self, states: States) -> list[Integer[np.ndarray, "n"]]:
        """The position of the training image nearest to each sample, by each metric of memorization."""
        found = zip(self.metrics, states, strict=True)
        return [metric.nearest_train(state) for metric, state in found if isinstance(metric, Memorization)]

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


def _keeping(
    batches: Iterator[Batch], shown: Integer[np.ndarray, "m"], kept: list[np.ndarray]
) -> Iterator[Batch]:
    """The batches; their images at the positions `shown` are added to `kept`."""
    for batch in batches:
        kept.append(batch.images[np.isin(batch.positions, shown)])
        yield batch


def _shown(labels: Sequence[int] | np.ndarray) -> Integer[np.ndarray, "m"]:
    """Positions of the samples in the figure: the first ones of the first ten classes."""
    shown = np.flatnonzero(np.isin(labels, np.unique(labels)[:GALLERY_CLASSES]))
    return shown[: GALLERY_ROWS * len(np.unique(np.asarray(labels)[shown]))]
