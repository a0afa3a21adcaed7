"""CLIP score: cosines that are known, and pairs that are kept together."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.clip_score import ClipScore, clip_scores
from tests.evaluation.models import Space, score


@dataclasses.dataclass(frozen=True)
class Texts:
    """Token ids as vectors."""

    name: str = "CLIP texts"
    width: int = 9

    def __call__(self, texts):
        return texts[:, : self.width].astype(np.float32)


def test_known_cosines():
    images = np.array([[3.0, 0], [0, 2], [1, 1], [1, 0]])
    texts = np.array([[9.0, 0], [5, 0], [1, 0], [-1, 0]])
    np.testing.assert_allclose(clip_scores(images, texts), [100, 0, 100 / np.sqrt(2), 0])
    np.testing.assert_allclose(clip_scores(images, texts, 2.5)[0], 2.5)


def test_each_sample_is_compared_with_its_own_caption():
    generator = np.random.default_rng(0)
    samples = generator.integers(0, 256, (30, 3, 3, 1)).astype(np.uint8)
    texts = samples.reshape(30, 9).astype(np.int32)
    metric = ClipScore(Space(), Texts())
    found = score(metric, samples, fields={"text": texts}, size=7)["clip_score"]
    assert found["value"] == pytest.approx(100)
    assert found["n"] == 30
    assert score(metric, samples, fields={"text": texts[::-1]}, size=7)["clip_score"]["value"] < 95
    for texts_of, fields, message in (
        (Texts(), {"caption": texts}, "text='text': expected a field"),
        (Texts(width=4), {"text": texts}, "got 9 and 4 numbers"),
    ):
        with pytest.raises(UserError, match=message):
            score(ClipScore(Space(), texts_of), samples, fields=fields)
