"""Crops of photographs with conditions, as examples for training and for tests."""

import numpy as np
import pytest

from jaxdiff.data.conditions import Choice, Degrade
from jaxdiff.data.degradations import Downsample, Grayscale
from jaxdiff.data.masks import BoxMask, Hint, Masked
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.evaluation.reports import paired


def crops(split, *conditions):
    return Pipeline(Tfds("photos/32", split), conditions=conditions).all()


def rows(examples, n):
    return {name: values[paired.evenly(np.zeros(len(values), int), n)] for name, values in examples.items()}


@pytest.fixture(scope="session")
def small():
    """Train and test examples of super-resolution by 4."""
    condition = Degrade("low_res", Downsample(4))
    return crops("train[:3%]", condition), rows(crops("test", condition), 60)


@pytest.fixture(scope="session")
def partial():
    """Train and test examples of two tasks."""
    condition = Choice("source", (Hint(Grayscale()), Masked(BoxMask(), fill=0.0)))
    return crops("train[:3%]", condition), rows(crops("test", condition), 60)
