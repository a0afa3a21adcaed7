"""Retrieval of vectors whose nearest neighbours are known."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation import streams
from jaxdiff.evaluation.metrics.retrieval import Retrieval

BASIS = np.eye(8)
NO_IMAGES = np.zeros((8, 1, 1, 1), np.uint8)


def recall(images, texts, names=None, parts=1, **options):
    names = np.arange(len(images)) if names is None else np.asarray(names)
    metric = Retrieval(candidates=options.pop("candidates", len(images)), **options)
    state = metric.init()
    for rows in np.array_split(np.arange(len(images)), parts):
        fields = {"image_vector": images[rows], "text_vector": texts[rows], "text": names[rows, None]}
        pictures = np.zeros((len(rows), 1, 1, 1), np.uint8)
        state = metric.update(state, streams.batch_of("test", pictures, fields, int(rows[0])))
    return metric.compute(state)["retrieval"]


def test_pairs_find_each_other_and_shifted_pairs_never():
    assert recall(BASIS, BASIS)["text_of_image"] == {"at_1": 1.0, "at_5": 1.0}
    assert recall(BASIS, np.roll(BASIS, 1, axis=0))["image_of_text"] == {"at_1": 0.0, "at_5": 0.0}


def test_the_two_directions_differ():
    """All images are the text of pair 0: it is the nearest text of each, and they tie for it."""
    found = recall(np.tile(BASIS[:1], (8, 1)), BASIS, at=(1,))
    assert found["text_of_image"] == {"at_1": 1 / 8}
    assert found["image_of_text"] == {"at_1": 0.0}  # ties are errors


def test_rank_k_counts_from_k_on():
    angles = np.linspace(0, 1.4, 8)  # the right text of image 0 is its third
    texts = np.stack([np.cos(angles), np.sin(angles)], axis=1)[[2, 0, 1, 3, 4, 5, 6, 7]]
    images = np.tile([[1.0, 0.0]], (8, 1))
    found = [recall(images, texts, at=(k,))["text_of_image"][f"at_{k}"] for k in (1, 2, 3, 7)]
    assert found == [1 / 8, 2 / 8, 3 / 8, 7 / 8]


def test_equal_texts_are_all_right():
    shifted = np.roll(BASIS, 1, axis=0)
    names = np.arange(8) // 2  # pairs of neighbours have one text
    assert recall(BASIS, shifted, names, at=(1,))["text_of_image"]["at_1"] == 0.5


def test_groups_are_apart_and_batches_do_not_matter():
    twice = np.concatenate([BASIS[:4], BASIS[:4]])
    whole = recall(twice, twice, at=(1,), candidates=4)
    assert whole["text_of_image"]["at_1"] == 1.0  # in one group of eight, each would tie with its copy
    assert recall(twice, twice, at=(1,))["text_of_image"]["at_1"] == 0.0
    assert recall(twice, twice, at=(1,), candidates=4, parts=3) == whole
    assert recall(twice, twice, at=(1,), candidates=3)["groups"] == 2


def test_vectors_that_are_not_finite_are_never_found():
    broken = np.full((8, 8), np.nan)
    assert recall(broken, broken)["text_of_image"]["at_5"] == 0.0


def test_impossible_settings():
    with pytest.raises(UserError, match="candidates=1: expected at least 2"):
        Retrieval(candidates=1)
    with pytest.raises(UserError, match=r"at=\(1, 64\): expected numbers from 1 to candidates - 1 = 63"):
        Retrieval(at=(1, 64))
    with pytest.raises(UserError, match="candidates=9: expected at most 8, the number of test examples"):
        recall(BASIS, BASIS, candidates=9)
