import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.classifiers.svm import SvmClassifier
from jaxdiff.evaluation.features.pixels import Pixels


def test_classifier_is_nearly_perfect_on_unseen_digits(digits):
    train, test = digits
    assert SvmClassifier().fit(*train).accuracy(*test) > 0.975


def test_classifier_is_at_chance_on_noise(digits):
    train, _ = digits
    noise = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 1)).astype(np.uint8)
    assert SvmClassifier().fit(*train).accuracy(noise, np.arange(1000) % 10) == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("arguments", [{"c": 0.0}, {"gamma": -1.0}])
def test_impossible_settings_are_errors(arguments):
    with pytest.raises(UserError, match=f"{next(iter(arguments))}="):
        SvmClassifier(**arguments)


def test_pixels_are_rows_between_0_and_1():
    images = np.array([[[[0], [255]]], [[[51], [102]]]], np.uint8)
    np.testing.assert_allclose(Pixels()(images), [[0, 1], [0.2, 0.4]], rtol=1e-15)
