"""Accuracy: the classifier sees training images only."""

import numpy as np
import pytest

from jaxdiff.evaluation.metrics.accuracy import Accuracy
from tests.evaluation.models import batches


def score(train, test, samples, size=None):
    """Accuracy of samples; each set is (images, labels)."""
    metric = Accuracy()
    state = metric.init()
    for stream, (images, labels) in (("train", train), ("test", test), ("samples", samples)):
        for batch in batches(stream, images, labels, size):
            state = metric.update(state, batch)
        state = state if stream == "samples" else metric.finish(state, stream)
    return metric.compute(state)


def test_real_images_are_classified_and_wrong_labels_are_not(digits):
    train, (images, labels) = digits
    found = score(train, (images, labels), (images, labels), size=100)
    assert found["accuracy"] == found["classifier_accuracy_on_test"] > 0.975
    weights = [np.mean(labels == int(label)) for label in found["accuracy_by_class"]]
    assert np.dot(weights, list(found["accuracy_by_class"].values())) == pytest.approx(found["accuracy"])
    wrong = score(train, (images, labels), (images, (labels + 1) % 10))
    assert wrong["accuracy"] < 0.02
    assert wrong["classifier_accuracy_on_test"] == found["classifier_accuracy_on_test"]


def test_a_single_class_has_no_accuracy(digits):
    (train, labels), (test, _) = digits
    none = (train, 0 * labels), (test, np.zeros(len(test), int)), (test[:5], np.zeros(5, int))
    found = score(*none)
    assert found == {"accuracy": None, "accuracy_by_class": {"0": None}, "classifier_accuracy_on_test": None}
    assert not Accuracy().notes(found)
