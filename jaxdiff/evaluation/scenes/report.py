"""Evaluation of a text-to-image model on scenes: do samples show the scenes of their captions, and are they new?

The fraction of correct samples stands between two others. Real test images, read by the same classifier, are what a
perfect model reaches. Samples generated from the caption of another scene are what a model reaches that ignores its
caption: chance.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Integer

import jaxdiff
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.errors import expect
from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation import streams
from jaxdiff.evaluation.examples import Subset
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, States
from jaxdiff.evaluation.metrics.memorization import Memorization
from jaxdiff.evaluation.plots import tables
from jaxdiff.evaluation.protocols import EvaluationInputs, Examples, Fields, Report
from jaxdiff.evaluation.requests import conditions_of
from jaxdiff.evaluation.scenes.classifier import FIELDS, SceneClassifier, Scenes
from jaxdiff.evaluation.scenes.features import HalfSize
from jaxdiff.evaluation.scenes.figure import COLUMNS, ROWS, figure
from jaxdiff.evaluation.scenes.metrics import SceneAccuracy, SceneSpread, scene_keys
from jaxdiff.evaluation.scenes.overlap import BoxOverlap
from jaxdiff.evaluation.settings import check_sampling, curves, sampling_settings

Column = tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]
"""Values of a set of images, which of the first are correct, and these images."""


@dataclasses.dataclass(frozen=True)
class SceneEvaluation:
    """Fractions of correct samples, memorization, and spread; and positions, of examples with the field `BOXES`.

    Attributes:
      n: number of samples at each guidance scale: one for each of the first `n` test examples, under its conditions.
      guidances: guidance scales, in addition to 1 (off) and the scale of the sampling recipe.
      seed: seed of the samples' noise, and of the shuffling of captions.
      classifier: reads images; fitted to the training scenes.
      text_field: the condition that is the caption, as ids of `ByteTokenizer`.
      every: training steps between evaluations; 0 evaluates only when training ends.
    """

    n: int = 500
    guidances: tuple[float, ...] = ()
    seed: int = 0
    classifier: SceneClassifier = SceneClassifier()
    text_field: str = "text"
    every: int = 0

    def __post_init__(self):
        expect(self.n > 1, "n", self.n, "at least 2 captions, to shuffle them", "use 500")
        check_sampling(self.seed, self.guidances)
        expect(self.every >= 0, "every", self.every, "a number of steps >= 0", "give 0 for only at the end")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics, in the order of the table."""
        own = SceneAccuracy(self.classifier), BoxOverlap()
        return (*own, Memorization(HalfSize()), SceneSpread(HalfSize()))

    def __call__(self, inputs: EvaluationInputs) -> Report:
        """Generate samples, score and draw them.

        Raises:
          UserError: examples lack the attributes of scenes or the caption; there are fewer than `n` test examples.
        """
        test = self._test(inputs)
        others = Subset(test, shuffled(_scenes(test, inputs.batch_size), self.seed))
        start = folds.init(self.metrics)
        for stream, examples in zip(folds.REAL, (inputs.train, test), strict=True):
            batches = streams.real(examples, stream, inputs.batch_size)
            start = folds.finish(self.metrics, folds.fold(self.metrics, start, batches), stream)
        guidance = float(inputs.guidance)
        scales = sorted({1.0, guidance, *map(float, self.guidances)})
        samples = {scale: self._column(start, self._samples(inputs, test, test, scale)) for scale in scales}
        wrong = self._agreement(start, self._samples(inputs, test, others, guidance))
        real = self._column(start, _as_samples(test, test, inputs.batch_size))
        chance = self._agreement(start, _as_samples(others, test, inputs.batch_size))
        stated = {
            "n": self.n,
            "seed": self.seed,
            **folds.settings(self.metrics),
            "version": jaxdiff.__version__,
            **inputs.settings,
        }
        own, other, images = "of the test examples", "of other scenes", "real test images"
        values = {
            "samples": [
                {"guidance": scale, **found, "conditions": {**stated, "guidance": scale, "captions": own}}
                for scale, (found, _, _) in samples.items()
            ],
            "shuffled": {**wrong, "conditions": {**stated, "guidance": guidance, "captions": other}},
            "real": {**real[0], "conditions": {**stated, "images": images, "captions": "their own"}},
            "real_shuffled": {**chance, "conditions": {**stated, "images": images, "captions": other}},
            "noise_losses": curves(inputs),
        }
        ids = test.rows(np.arange(min(self.n, COLUMNS * ROWS)))[self.text_field]
        captions = [ByteTokenizer(ids.shape[1]).decode(row) for row in ids]
        return self._report(values, guidance, samples[guidance], captions)

    def _test(self, inputs: EvaluationInputs) -> Subset:
        """The test examples whose captions are used."""
        for examples in (inputs.train, inputs.test):
            fields = examples.rows(np.arange(1))
            lacking = [name for name in FIELDS if name not in fields]
            expected = f"examples with the fields {FIELDS}"
            fix = f"read scenes with Tfds(..., fields={FIELDS})"
            expect(not lacking, "evaluation", type(self).__name__, expected, fix, f"none of {lacking}")
        expected, fix = f"one of the fields {sorted(fields)}", "name the field of captions"
        expect(self.text_field in fields, "text_field", self.text_field, expected, fix)
        there = len(inputs.test)
        expect(self.n <= there, "n", self.n, f"at most {there}, the number of test examples", "use fewer")
        return Subset(inputs.test, np.arange(self.n))

    def _samples(
        self, inputs: EvaluationInputs, test: Subset, sources: Subset, guidance: float
    ) -> Iterator[Batch]:
        """Samples under the conditions of `sources`, scored by the scenes of `test`."""

        def request(rows: np.ndarray) -> tuple[dict[str, Any], Fields]:
            return conditions_of(inputs, sources.rows(rows)), test.rows(rows)

        shape, first = test.rows(np.arange(1))["image"].shape[1:], 0
        found = streams.generated(inputs, request, len(test), self.seed, guidance, shape)
        for images, fields in found:
            yield streams.batch_of("samples", images, fields, first)
            first += len(images)

    def _column(self, start: States, batches: Iterable[Batch]) -> Column:
        """All values of one set of images, real or not; the first images are kept for the figure."""
        states, kept, most = start, [], COLUMNS * ROWS
        for batch in batches:
            states = folds.update(self.metrics, states, batch)
            kept.append(batch.images[batch.positions < most])
        correct = SceneAccuracy(self.classifier).correct(states[0])
        shown = {name: values[:most] for name, values in correct.items()}
        return folds.compute(self.metrics, states), shown, np.concatenate(kept)

    def _agreement(self, start: States, batches: Iterable[Batch]) -> dict[str, Any]:
        """The metrics that compare images with requested scenes, alone."""
        metrics = self.metrics[:2]
        return folds.compute(metrics, folds.fold(metrics, start[:2], batches))

    def _report(self, values: dict[str, Any], guidance: float, shown: Column, captions: list[str]) -> Report:
        rows, (_, correct, images) = tables.rows_of(self.metrics), shown
        columns = {f"guidance {row['guidance']:g}": row for row in values["samples"]}
        every = {"real": values["real"], **columns, "shuffled": values["shuffled"]}
        cells, lines = tables.table(rows, every), caption(values)
        title = f"Samples at guidance {guidance:g}"
        image = figure(title, images, captions, correct, cells, lines, values["noise_losses"])
        return Report(values, cells, lines, image, tables.scalars(rows, columns))


def shuffled(scenes: Scenes, seed: int) -> Integer[np.ndarray, "n"]:
    """A permutation that gives every example the position of one that shows another scene.

    Equal scenes become neighbours, in a random order. Then all rows move by the number of the most frequent scene.

    Raises:
      UserError: more than half of the scenes are equal.
    """
    _, numbers = np.unique(np.array(scene_keys(scenes)), axis=0, return_inverse=True)
    numbers, generator = numbers.ravel(), np.random.default_rng(seed)
    most, n = int(np.bincount(numbers).max()), len(numbers)
    expected = "captions of which at most half describe the same scene"
    expect(2 * most <= n, "n", n, expected, "use more captions", f"{most} of the same scene")
    ranks = generator.permutation(numbers.max() + 1)[numbers]
    order = np.lexsort((generator.random(n), ranks))
    others = np.empty(n, int)
    others[order] = np.roll(order, -most)
    return others


def caption(values: Mapping[str, Any]) -> list[str]:
    """The settings under which the values hold, as a few lines."""
    settings = values["shuffled"]["conditions"]
    fractions = values["real_shuffled"]["correct"].items()
    chance = ", ".join(f"{name} {decimals(value)}" for name, value in fractions)
    if "overlap" in values["real_shuffled"]:
        chance += f", overlap {decimals(values['real_shuffled']['overlap'])}"
    lines = [
        f"{settings['n']} captions of test examples, seed {settings['seed']}; distances: {settings['features']}",
        f"real: the test images of these captions. Classifier: {settings['classifier']}",
        f"shuffled: samples from captions of other scenes, at guidance {settings['guidance']:g}. "
        f"Real images of other scenes: {chance}",
        sampling_settings(settings),
    ]
    return [line for line in lines if line]


def _scenes(examples: Examples, batch_size: int) -> Scenes:
    """The stored fields of scenes of all examples."""
    parts = [{name: batch[name] for name in FIELDS} for batch in examples.batches(batch_size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}


def _as_samples(images: Subset, scenes: Subset, batch_size: int) -> Iterator[Batch]:
    """Real images in place of samples, scored by the given scenes."""
    first = 0
    pairs = zip(images.batches(batch_size), scenes.batches(batch_size), strict=True)
    for shown, fields in pairs:
        yield streams.batch_of("samples", shown["image"], fields, first)
        first += len(shown["image"])
