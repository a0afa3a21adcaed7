"""Distances by class: of each class alone, of pairs of one class, and collapse that shows in one class only."""

import numpy as np
import pytest

from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.class_frechet import ClassFrechet
from jaxdiff.evaluation.metrics.frechet import frechet_distance
from jaxdiff.evaluation.metrics.intra_class import FeatureDistance, IntraClassDistance
from jaxdiff.evaluation.metrics.moments import fit
from tests.evaluation.models import score


@pytest.fixture(scope="module")
def classes():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (90, 3, 3, 1)).astype(np.uint8)
    return images, np.arange(90) % 3


def test_each_class_is_compared_with_its_own_images(classes):
    images, labels = classes
    samples, made = images[:60] // 2, labels[:60]
    found = score(ClassFrechet(), samples, made, test=(images, labels), size=7)["class_frechet"]
    expected = [
        frechet_distance(fit(Pixels()(samples[made == label])), fit(Pixels()(images[labels == label])))
        for label in range(3)
    ]
    assert list(found["by_class"].values()) == pytest.approx(expected, rel=1e-9)
    assert found["mean"] == pytest.approx(np.mean(expected))
    assert found["worst"] == max(found["by_class"].values())
    assert found["n_by_class"]["0"] == {"samples": 20, "reference": 30}
    assert found["left_out"] == 0


def test_a_collapsed_class_is_the_worst_one_and_few_images_are_left_out(classes):
    images, labels = classes
    samples, made = images.copy(), labels.copy()
    samples[made == 1] = images[1]
    made[-1] = 7  # a class without reference
    found = score(ClassFrechet(), samples, made, test=(images, labels))["class_frechet"]
    assert (found["worst_class"], found["left_out"]) == (1, 1)
    assert set(found["by_class"]) == {"0", "1", "2"}


@pytest.mark.parametrize("size", [1, 8, 90])
def test_consecutive_samples_of_a_class_are_pairs(classes, size):
    images, labels = classes
    found = score(IntraClassDistance(), images, labels, size=size)
    expected = {}
    for label in range(3):
        chosen = Pixels()(images[labels == label])
        expected[str(label)] = np.linalg.norm(chosen[0::2] - chosen[1::2], axis=1).mean()
    assert found["intra_class"]["by_class"] == pytest.approx(expected)
    assert found["intra_class_distance"] == pytest.approx(np.mean(list(expected.values())))
    assert found["intra_class"]["pairs"] == 45
    low, high = found["intra_class"]["interval_of_pairs"]
    assert low < found["intra_class_distance"] < high


def test_one_image_of_a_class_again_and_again_is_at_distance_zero(classes):
    images, labels = classes
    samples = images.copy()
    samples[labels == 2] = images[2]
    found = score(IntraClassDistance(FeatureDistance()), samples, labels)
    assert (found["intra_class"]["least"], found["intra_class"]["least_class"]) == (0, 2)
    assert found["intra_class_distance"] > 0
    assert score(IntraClassDistance(), images[:1])["intra_class_distance"] is None
