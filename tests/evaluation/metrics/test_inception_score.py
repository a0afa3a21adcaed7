"""Inception score: the stored value of torch-fidelity, and its two ends."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.inception_score import InceptionScore, inception_score
from tests.evaluation.models import Space, score

GOLDENS = Path(__file__).parents[2] / "goldens" / "metrics_features.npz"
LOGITS = Space("Inception-v3 logits (IS)")


def test_agrees_with_torch_fidelity():
    with np.load(GOLDENS) as golden:
        scores, expected = inception_score(golden["in/features_1"], 10), golden["out/inception_score"]
    np.testing.assert_allclose([scores.mean(), scores.std()], expected, rtol=1e-10)


def test_certain_and_varied_is_the_number_of_classes_and_constant_is_one():
    classes = 1e4 * np.eye(7)
    np.testing.assert_allclose(inception_score(np.tile(classes, (4, 1)), 2), 7, rtol=1e-12)
    np.testing.assert_allclose(inception_score(np.tile(classes[:1], (30, 1)), 3), 1, rtol=1e-12)
    np.testing.assert_allclose(inception_score(np.zeros((30, 7)), 3), 1, rtol=1e-12)


def test_every_sample_is_in_one_part():
    logits = np.random.default_rng(0).normal(size=(23, 5))
    ends = [0, 5, 11, 17, 23]  # floor(23 i / 4)
    parts = [inception_score(logits[a:b], 1)[0] for a, b in itertools.pairwise(ends)]
    np.testing.assert_allclose(inception_score(logits, 4), parts, rtol=1e-12)


def test_the_metric_states_n_and_refuses_other_spaces_and_few_samples():
    samples = np.random.default_rng(1).integers(0, 256, (40, 3, 3, 1)).astype(np.uint8)
    found = score(InceptionScore(LOGITS, splits=4), samples)["inception_score"]
    scores = inception_score(LOGITS(samples), 4)
    assert found == {"value": scores.mean(), "deviation": scores.std(), "n": 40}
    with pytest.raises(UserError, match="logits='pixels"):
        InceptionScore()
    with pytest.raises(UserError, match="samples=19: expected at least 20"):
        InceptionScore(LOGITS).check(19)
