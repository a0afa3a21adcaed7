import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics import memorization as diversity
from jaxdiff.evaluation.metrics import precision_recall as neighbours


def test_variance_is_the_trace_of_the_covariance():
    features, labels = np.random.default_rng(0).normal(size=(40, 6)), np.arange(40) % 2
    for label, value in diversity.class_variances(features, labels).items():
        assert value == pytest.approx(np.trace(np.cov(features[labels == label].T)))


def test_spread_finds_the_collapsed_class_only():
    generator, labels = np.random.default_rng(1), np.arange(3000) % 3
    real, samples = generator.normal(size=(2, 3000, 8))
    samples[labels == 1] *= 0.1
    spreads = diversity.class_spreads(samples, labels, real, labels)
    assert spreads[1] == pytest.approx(0.01, rel=0.1)
    assert [spreads[0], spreads[2]] == pytest.approx([1, 1], abs=0.1)
    assert min(spreads, key=lambda label: spreads[label]) == 1


def test_a_class_without_spread_in_the_data_has_no_ratio():
    real, labels = np.random.default_rng(2).normal(size=(8, 3)), np.arange(8) % 2
    real[labels == 0] = 1.0
    assert set(diversity.class_spreads(real, labels, real, labels)) == {1}


def test_one_sample_of_a_class_is_an_error():
    with pytest.raises(UserError, match="class 1 has one image"):
        diversity.class_variances(np.zeros((3, 2)), np.array([0, 0, 1]))


def test_memorisation_tells_copies_from_new_images(digits):
    (train, _), (test, _) = digits
    features = Pixels()
    held_out = neighbours.nearest(features(test), features(train), 2)[0]
    new = diversity.memorisation(held_out, held_out)
    assert new["ratio"] == 1.0
    assert new["near_copies"] < 0.02
    change = np.random.default_rng(0).integers(-3, 4, (200, 8, 8, 1))
    noisy = np.clip(train[:200] + change, 0, 255).astype(np.uint8)
    copied = diversity.memorisation(neighbours.nearest(features(noisy), features(train), 2)[0], held_out)
    assert copied["ratio"] < 0.1
    assert copied["near_copies"] > 0.9


def test_only_equal_images_are_exact_copies():
    generator = np.random.default_rng(3)
    train = generator.integers(0, 255, (20, 4, 4, 1), np.uint8)
    samples = train[[3, 7, 7, 9]].copy()
    samples[3, 0, 0, 0] += 1
    assert neighbours.members(samples, train).tolist() == [True, True, True, False]
