"""Accuracy of a classifier that has seen real images only: whether samples show the requested class."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from jaxdiff.evaluation.classifiers.svm import SvmClassifier
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics.running import Mean
from jaxdiff.evaluation.protocols import Classifier, TrainableClassifier

ByClass = Mapping[int, Mean]
"""Fraction of images that are classified as their label, for each label."""


class _State(NamedTuple):
    images: tuple[np.ndarray, ...] = ()  # of training, until the classifier is fitted
    labels: tuple[np.ndarray, ...] = ()
    classifier: Classifier | None = None
    test: ByClass = {}  # noqa: RUF012  (never changed in place)
    samples: ByClass = {}  # noqa: RUF012


@dataclasses.dataclass(frozen=True)
class Accuracy(Metric):
    """Fraction of samples that a classifier assigns to the requested class, in all and by class.

    All training images are held in memory while the classifier is fitted. Where training images have a single class,
    there is no accuracy (None).

    Attributes:
      classifier: is fitted to the training images.
    """

    classifier: TrainableClassifier = SvmClassifier()

    needs_all = True

    @property
    def streams(self) -> tuple[str, ...]:
        return ("train", "test", "samples")

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        if batch.stream == "train":
            images, labels = (*state.images, batch.images), (*state.labels, batch.labels)
            return state._replace(images=images, labels=labels)
        classifier = state.classifier
        correct = None if classifier is None else classifier.predict(batch.images) == batch.labels
        found = _add(getattr(state, batch.stream), batch.labels, correct)
        return state._replace(**{batch.stream: found})

    def finish(self, state: _State, stream: str) -> _State:
        if stream != "train":
            return state
        images, labels = np.concatenate(state.images), np.concatenate(state.labels)
        several = len(np.unique(labels)) > 1
        return _State(classifier=self.classifier.fit(images, labels) if several else None)

    def compute(self, state: _State) -> dict[str, Any]:
        by_class = {str(label): mean.value for label, mean in sorted(state.samples.items())}
        return {
            "accuracy": _overall(state.samples),
            "accuracy_by_class": by_class,
            "classifier_accuracy_on_test": _overall(state.test),
        }

    def table(self) -> Sequence[Row]:
        return [Row("accuracy of the requested class", "accuracy", decimals)]

    def settings(self) -> dict[str, Any]:
        return {"classifier": self.classifier.name}

    def notes(self, values: Mapping[str, Any]) -> Sequence[str]:
        on_test = values["classifier_accuracy_on_test"]
        return [] if on_test is None else [f"classifier: accuracy {decimals(on_test)} on the test images"]


def _add(means: ByClass, labels: Integer[np.ndarray, "n"], correct: np.ndarray | None) -> ByClass:
    found = dict(means)
    for label in np.unique(labels).tolist():
        rows = labels == label
        known = found.get(label, Mean())
        found[label] = known if correct is None else known.add(float(correct[rows].sum()), int(rows.sum()))
    return found


def _overall(means: ByClass) -> float | None:
    total = Mean()
    for mean in means.values():
        total = total.add(mean.total, mean.count)
    return total.value
