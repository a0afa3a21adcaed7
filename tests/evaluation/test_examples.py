"""Examples in streams: the same rows by position and in batches."""

import numpy as np
import pytest

from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.evaluation.examples import InMemory, Subset
from jaxdiff.evaluation.protocols import Examples


@pytest.fixture(scope="module")
def stored():
    return Pipeline(Tfds("digits", "test")).stored()


def test_stored_examples_are_the_epoch(stored):
    everything = Pipeline(Tfds("digits", "test")).all()
    assert isinstance(stored, Examples)
    assert len(stored) == len(everything["image"]) == 297
    index = np.array([3, 1, 1, 296])
    for name, values in stored.rows(index).items():
        np.testing.assert_array_equal(values, everything[name][index])
    parts = list(stored.batches(100))
    assert [len(part["image"]) for part in parts] == [100, 100, 97]
    np.testing.assert_array_equal(np.concatenate([part["image"] for part in parts]), everything["image"])


def test_a_subset_keeps_its_order_and_repeats(stored):
    index = np.array([7, 2, 2, 90, 5])
    subset, memory = Subset(stored, index), InMemory(stored.rows(index))
    assert len(subset) == len(memory) == 5
    for part, expected in zip(subset.batches(2), memory.batches(2), strict=True):
        np.testing.assert_array_equal(part["image"], expected["image"])
    np.testing.assert_array_equal(subset.rows(np.array([4, 0]))["label"], memory.fields["label"][[4, 0]])
