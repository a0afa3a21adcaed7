"""Evaluation of super-resolution: are details realistic, and do samples agree with the small image?

Two questions, because each alone is easy to satisfy: real images of another scene have real details, and a blurred
enlargement agrees with the small image.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.data import images as pixels
from jaxdiff.errors import expect
from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation.baselines import Enlarged, levels
from jaxdiff.evaluation.examples import Subset
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.formats import significant
from jaxdiff.evaluation.metric import Metric, Row
from jaxdiff.evaluation.metrics.patch_frechet import PatchFrechet
from jaxdiff.evaluation.metrics.restoration import Consistency, Diversity, MeanColourError, Psnr
from jaxdiff.evaluation.metrics.spectrum import SpectrumDistance
from jaxdiff.evaluation.plots import examples as plot
from jaxdiff.evaluation.plots import tables
from jaxdiff.evaluation.protocols import EvaluationInputs, Fields, Report
from jaxdiff.evaluation.reports import paired
from jaxdiff.evaluation.requests import conditions_of
from jaxdiff.evaluation.settings import curves, sampling_settings

SHOWN = 6
"""Number of examples in the figure."""


@dataclasses.dataclass(frozen=True)
class SuperResolutionEvaluation:
    """Distances of patches and spectra, consistency, colour shift, PSNR and diversity of enlarged images.

    The table has the columns "real", the baseline, and the model at each guidance scale. Fréchet distance and spectrum
    distance are measured against the test images. For "real" they are the distances of every second test image to the
    others: the difference between two sets of real images. (Overlapping crops make it small. Training images are no
    reference: they show other scenes, while a model sees the small image.) The consistency of "real" is that of the
    truth.

    Attributes:
      factor: ratio of the sides of samples and given images.
      condition: name of the given image among the model's conditions: uint8, or float in [-1, 1].
      n: number of test images, evenly spread over all; all if there are fewer.
      samples_per_input: number of samples of each image. The metrics use the first; two or more give the diversity.
      guidances: guidance scales, in addition to the scale of the sampling recipe.
      seed: seed of the samples' noise; sample i of an input uses ``seed + i``.
      features: patches of the Fréchet distance.
      baseline: resampling method of the baseline.
      every: training steps between evaluations; 0 evaluates only when training ends.
    """

    factor: int = 4
    condition: str = "low_res"
    n: int = 1000
    samples_per_input: int = 1
    guidances: tuple[float, ...] = ()
    seed: int = 0
    features: Patches = Patches()
    baseline: pixels.Resampling = "bicubic"
    every: int = 0

    def __post_init__(self):
        expect(self.factor > 1, "factor", self.factor, "at least 2", "give 2 or more")
        paired.check(self)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics, in the order of the table."""
        return (
            PatchFrechet(self.features),
            SpectrumDistance(),
            Consistency(self.condition, self.factor),
            MeanColourError(),
            Psnr(),
            Diversity(),
        )

    def __call__(self, inputs: EvaluationInputs) -> Report:
        paired.check_condition(inputs, self.condition)
        rows = paired.evenly(np.zeros(len(inputs.test), int), self.n)
        test, metrics = Subset(inputs.test, rows), self.metrics
        self._check_factor(inputs, test.rows(np.arange(1)))
        start = paired.reference(metrics, paired.real_batches(test, "test", inputs.batch_size))
        shown = paired.Shown(paired.evenly(np.zeros(len(test), int), SHOWN))

        enlarged = paired.baseline_batches(test, self._enlarge, inputs.batch_size)
        baseline = folds.compute(metrics, folds.fold(metrics, start, shown.watch(self.baseline, enlarged)))
        samples = []
        for guidance in paired.guidances(self, inputs):
            batches = paired.sample_batches(inputs, test, guidance, self.seed, self.samples_per_input)
            watched = shown.watch(f"guidance {guidance:g}", batches)
            scores = folds.compute(metrics, folds.fold(metrics, start, watched))
            scores["baseline_over_frechet"] = paired.ratio(baseline["frechet"], scores["frechet"])
            samples.append({"guidance": guidance, **scores})
        values = {
            "evaluation": "super-resolution",
            "conditions": {"factor": self.factor, **paired.settings(self, inputs, len(test))},
            "samples": samples,
            "baseline": {"name": self.baseline, **baseline},
            "real": self._real(test, inputs.batch_size),
            "noise_losses": curves(inputs),
        }
        return self._report(values, shown, test)

    def _real(self, test: Subset, batch_size: int) -> dict[str, Any]:
        """Distances of every second test image to the others, and the consistency of all of them."""
        halves = [Subset(test, np.arange(first, len(test), 2)) for first in (0, 1)]
        distances: tuple[Metric, ...] = (PatchFrechet(self.features), SpectrumDistance())
        start = paired.reference(distances, paired.real_batches(halves[1], "test", batch_size))
        states = folds.fold(distances, start, paired.real_batches(halves[0], "samples", batch_size))
        consistency = (Consistency(self.condition, self.factor),)
        truth = paired.real_batches(test, "samples", batch_size)
        agreement = folds.fold(consistency, folds.init(consistency), truth)
        return {**folds.compute(distances, states), **folds.compute(consistency, agreement)}

    def _enlarge(self, fields: Fields) -> np.ndarray:
        return Enlarged(self.factor, self.baseline)(fields[self.condition])

    def _check_factor(self, inputs: EvaluationInputs, fields: Fields) -> None:
        fields = {**fields, **conditions_of(inputs, fields)}
        small, image = fields[self.condition].shape[1:], fields["image"].shape[1:]
        expected = f"the factor between {self.condition} {small} and images {image}"
        fits = tuple(side * self.factor for side in small[:2]) == image[:2]
        expect(fits, "factor", self.factor, expected, "give this factor")

    def _report(self, values: dict[str, Any], shown: paired.Shown, test: Subset) -> Report:
        rows, caption = self._rows(), self._caption(values)
        columns = {f"guidance {row['guidance']:g}": row for row in values["samples"]}
        table = tables.table(rows, {"real": values["real"], self.baseline: values["baseline"], **columns})
        fields = test.rows(shown.positions)
        small = np.clip(np.rint(levels(fields[self.condition])), 0, 255).astype(np.uint8)
        examples = {"given": small, **shown.columns, "truth": fields["image"]}
        names = [str(row) for row in test.index[shown.positions]]
        image = plot.figure(examples, names, table, caption, values["noise_losses"])
        return Report(values, table, caption, image, tables.scalars(rows, columns))

    def _rows(self) -> list[Row]:
        rows = tables.rows_of(self.metrics)
        rows.insert(1, Row(f"{self.baseline}'s over this", "baseline_over_frechet", significant))
        return rows

    def _caption(self, values: Mapping[str, Any]) -> Sequence[str]:
        settings = values["conditions"]
        lines = [
            f"{settings['n']} of {settings['test_images']} test images, enlarged {self.factor} times, "
            f"{settings['features']}, seed {self.seed}",
            "real: every second test image against the others; consistency of the truth",
            *(line for metric in self.metrics for line in metric.notes(values["samples"][0])),
            sampling_settings(settings),
        ]
        return [line for line in lines if line]
