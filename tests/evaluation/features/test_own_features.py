"""Feature spaces of the data set at hand: principal components of pixels, and a classifier's vectors."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.classifier import ClassifierFeatures, train_classifier
from jaxdiff.evaluation.features.pca import PixelPca, fit_pixel_pca
from jaxdiff.evaluation.protocols import Classifier, FeatureExtractor
from jaxdiff.models.conv_classifier import ConvClassifier


def test_components_are_the_directions_of_largest_variance(digits, tmp_path):
    (train, _), (test, _) = digits
    path = str(tmp_path / "pca.safetensors")
    features = fit_pixel_pca(train, 10, path)
    rows = train.reshape(len(train), -1) / 255
    variances, directions = np.linalg.eigh(np.cov(rows.T))
    found = features(train)
    np.testing.assert_allclose(np.cov(found.T), np.diag(variances[::-1][:10]), atol=1e-5)
    centred = test.reshape(len(test), -1) / 255 - rows.mean(axis=0)
    expected = centred @ directions[:, ::-1][:, :10]
    np.testing.assert_allclose(np.abs(features(test)), np.abs(expected), atol=1e-4)
    assert features == PixelPca(path)
    assert (features.dim, len(features.hash)) == (10, 64)
    assert isinstance(features, FeatureExtractor)


def test_all_components_keep_all_distances(digits, tmp_path):
    (train, _), (test, _) = digits
    features = fit_pixel_pca(train, 64, str(tmp_path / "pca.safetensors"))
    pixels, found = test.reshape(len(test), -1) / 255, features(test)
    expected = np.linalg.norm(pixels[:50] - pixels[50:100], axis=1)
    np.testing.assert_allclose(np.linalg.norm(found[:50] - found[50:100], axis=1), expected, rtol=1e-4)


def test_impossible_components_and_files(digits, tmp_path):
    images = digits[0][0]
    with pytest.raises(UserError, match="dim=65: expected 1 to 64"):
        fit_pixel_pca(images, 65, str(tmp_path / "x"))
    features = fit_pixel_pca(images, 3, str(tmp_path / "pca.safetensors"))
    with pytest.raises(UserError, match=r"images=\(8, 4, 1\): expected images of \(8, 8, 1\)"):
        features(images[:, :, :4])
    save_file({"other": np.zeros(3)}, tmp_path / "other")
    for extractor in (PixelPca, ClassifierFeatures):
        with pytest.raises(UserError, match=r"weights='.*other': expected"):
            extractor(str(tmp_path / "other")).dim  # noqa: B018


@pytest.mark.slow
def test_a_classifier_of_digits_separates_unseen_digits(digits, tmp_path):
    (train, labels), (test, test_labels) = digits
    path = str(tmp_path / "classifier.safetensors")
    small = ConvClassifier(10, width=16, levels=2, features=32)
    features = train_classifier(train, labels, path, small, steps=300, batch_size=64)
    assert np.mean(features.predict(test) == test_labels) >= 0.9
    again = ClassifierFeatures(path)
    np.testing.assert_array_equal(again(test), features(test))
    assert again(test).shape == (len(test), features.dim)
    assert isinstance(again, FeatureExtractor)
    assert isinstance(again, Classifier)
    nearest = features(train)
    distances = np.linalg.norm(features(test)[:, None] - nearest[None], axis=-1)
    assert np.mean(labels[distances.argmin(axis=1)] == test_labels) >= 0.9


def test_labels_that_are_no_classes_are_refused(digits, tmp_path):
    images = digits[0][0][:4]
    for labels, field in (([0, 0, 0, 0], "labels=1"), ([-1, 0, 1, 2], "labels=-1")):
        with pytest.raises(UserError, match=f"{field}: expected"):
            train_classifier(images, np.array(labels), str(tmp_path / "x"))


def test_names_say_that_the_spaces_are_those_of_the_data():
    names = [PixelPca("a").name, ClassifierFeatures("a").name]
    assert names == ["principal components of pixels", "features of a classifier trained on this data set"]
