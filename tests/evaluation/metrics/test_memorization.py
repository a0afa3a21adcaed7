"""Memorization: copies are found, and new images are not taken for copies."""

import numpy as np

from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.memorization import Memorization, memorization
from jaxdiff.evaluation.metrics.neighbours import nearest
from tests.evaluation.models import batches


def score(train, test, samples, size=None):
    """Values, and the position of the training image nearest to each sample."""
    metric = Memorization(Pixels())
    state = metric.init()
    for stream, images in (("train", train), ("test", test), ("samples", samples)):
        for batch in batches(stream, images, size=size):
            state = metric.update(state, batch)
        state = state if stream == "samples" else metric.finish(state, stream)
    return metric.compute(state)["memorization"], metric.nearest_train(state)


def test_copies_differ_from_new_images(digits):
    (train, _), (test, _) = digits
    features = Pixels()
    held_out = nearest(features(test), features(train), 2)[0]
    new = memorization(held_out, held_out)
    assert new["ratio"] == 1.0
    assert new["near_copies"] < 0.02
    change = np.random.default_rng(0).integers(-3, 4, (200, 8, 8, 1))
    noisy = np.clip(train[:200] + change, 0, 255).astype(np.uint8)
    copied, near = score(train, test, noisy)
    assert copied["ratio"] < 0.1
    assert copied["near_copies"] > 0.9
    assert copied["exact_copies"] < 0.1
    assert (near == np.arange(200)).mean() > 0.99


def test_test_images_as_samples_are_new(digits):
    (train, _), (test, _) = digits
    found, _ = score(train, test, test, size=50)
    assert found["ratio"] == 1.0
    assert found["exact_copies"] == 0.0


def test_only_equal_images_are_exact_copies():
    generator = np.random.default_rng(3)
    train = generator.integers(0, 255, (20, 4, 4, 1), np.uint8)
    samples = train[[3, 7, 7, 9]].copy()
    samples[3, 0, 0, 0] += 1
    found, near = score(train, generator.integers(0, 255, (5, 4, 4, 1), np.uint8), samples)
    assert found["exact_copies"] == 3 / 4
    assert near.tolist() == [3, 7, 7, 9]
    assert found["median_distance"] == 0


def test_test_images_that_are_copies_give_no_ratio(digits):
    (train, _), _ = digits
    found, _ = score(train, train[:50], train[50:90])
    assert found["ratio"] is None
    assert found["test_median_distance"] == 0
