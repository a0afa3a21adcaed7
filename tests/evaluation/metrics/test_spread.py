"""Spread: running variances by class, and the classes that have collapsed."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.spread import ClassSpread, add
from tests.evaluation.models import batches


class Rows:
    """Feature extractor that returns the rows of a table; images hold their row number."""

    name = "rows of a table"

    def __init__(self, table):
        self.table = table

    def __call__(self, images):
        return self.table[images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]]


def numbered(rows):
    return np.stack([rows // 256, rows % 256], axis=1).astype(np.uint8)[:, None, :, None]


def spread(real, samples, labels, size=None):
    """Spread of samples with the given features, whose labels are those of the real ones too."""
    metric = ClassSpread(Rows(np.concatenate([real, samples])))
    state = metric.init()
    for stream, first in (("train", 0), ("samples", len(real))):
        images = numbered(np.arange(first, first + len(labels)))
        for batch in batches(stream, images, labels, size):
            state = metric.update(state, batch)
    return metric.compute(state)["spread"]


@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_running_variance_is_the_trace_of_the_covariance(size):
    features, labels = np.random.default_rng(0).normal(size=(40, 6)) + 1e3, np.arange(40) % 2
    scatters = {}
    for first in range(0, 40, size):
        scatters = add(scatters, labels[first : first + size].tolist(), features[first : first + size])
    for label, scatter in scatters.items():
        assert scatter.variance == pytest.approx(np.trace(np.cov(features[labels == label].T)))


def test_only_the_collapsed_class_is_found():
    generator, labels = np.random.default_rng(1), np.arange(3000) % 3
    real, samples = generator.normal(size=(2, 3000, 8))
    samples[labels == 1] *= 0.1
    found = spread(real, samples, labels, 500)
    assert found["by_class"]["1"] == found["minimum"] == pytest.approx(0.01, rel=0.1)
    assert [found["by_class"][label] for label in "02"] == pytest.approx([1, 1], abs=0.1)


def test_a_class_without_spread_in_the_data_has_no_ratio():
    real, labels = np.random.default_rng(2).normal(size=(8, 3)), np.arange(8) % 2
    real[labels == 0] = 1.0
    assert set(spread(real, real, labels)["by_class"]) == {"1"}


def test_one_sample_of_a_class_is_an_error():
    with pytest.raises(UserError, match="got one of class 1"):
        spread(np.zeros((3, 2)), np.zeros((3, 2)), np.array([0, 0, 1]))
