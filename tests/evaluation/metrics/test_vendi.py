"""Vendi score: effective numbers of images that are known, by the matrix of all pairs, and streamed."""

import numpy as np
import pytest

from jaxdiff.evaluation.metrics.vendi import Vendi, vendi_score
from tests.evaluation.models import Space, score


def of_pairs(features):
    """The definition, by the [n, n] matrix of cosines."""
    vectors = features / np.linalg.norm(features, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(vectors @ vectors.T / len(vectors))
    values = values[values > 1e-14]
    return np.exp(-(values * np.log(values)).sum())


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_it_is_the_definition_for_few_and_for_many_images(shape):
    features = np.random.default_rng(0).normal(size=shape)
    assert vendi_score(features) == pytest.approx(of_pairs(features), rel=1e-10)


def test_equal_images_are_one_and_groups_count_by_their_size():
    basis = np.eye(6) * 3
    assert vendi_score(np.repeat(basis[:1], 9, axis=0)) == pytest.approx(1)
    assert vendi_score(np.repeat(basis, 5, axis=0)) == pytest.approx(6)
    groups = np.repeat(basis[:2], [3, 1], axis=0)
    assert vendi_score(groups) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


def test_the_metric_is_the_score_of_all_batches():
    images = np.random.default_rng(1).integers(0, 256, (90, 3, 3, 1)).astype(np.uint8)
    found = score(Vendi(Space()), images, size=17)
    assert found == {"vendi": pytest.approx(vendi_score(Space()(images)), rel=1e-10), "vendi_n": 90}
