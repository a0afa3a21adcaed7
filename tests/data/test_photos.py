"""Crops are the photographs' own pixels, and no pixel of a test crop is in a training crop."""

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from jaxdiff.data.photos import NAMES
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds


@pytest.fixture(scope="module", params=[32, 64])
def splits(request):
    name = f"photos/{request.param}"
    return {split: Pipeline(Tfds(name, split, fields=("box",))).all() for split in ("train", "test")}


def seen(part, label):
    """How many crops cover each pixel of a photograph."""
    counts = np.zeros((427, 640), int)
    for top, left, bottom, right in part["box"][part["label"] == label]:
        counts[top:bottom, left:right] += 1
    return counts


@pytest.mark.spread(2)
@pytest.mark.parametrize("label", [0, 1])
def test_training_and_test_crops_are_disjoint_and_cover_most_pixels(splits, label):
    train, test = (seen(splits[split], label) > 0 for split in ("train", "test"))
    assert not (train & test).any()
    assert (train | test).mean() > 0.9
    assert 0.25 < test.mean() < 0.35


def test_crops_are_means_of_the_photographs_pixels(splits):
    photographs = [load_sample_image(f"{name}.jpg") for name in NAMES]
    scales = set()
    for part in splits.values():
        for image, label, (top, left, bottom, right) in zip(
            part["image"][::7], part["label"][::7], part["box"][::7], strict=True
        ):
            scale = (bottom - top) // len(image)
            assert (bottom - top, right - left) == (scale * len(image),) * 2
            crop = photographs[label][top:bottom, left:right].astype(float)
            means = sum(crop[i::scale, j::scale] for i in range(scale) for j in range(scale)) / scale**2
            assert np.abs(image - means).max() <= 0.5
            scales.add(scale)
    assert scales == {1, 2}


def test_crops_are_distinct_and_equally_many_of_both_photographs(splits):
    for part in splits.values():
        assert len(np.unique(np.column_stack([part["box"], part["label"]]), axis=0)) == len(part["box"])
        counts = np.bincount(part["label"])
        assert counts[0] == counts[1]
    assert len(splits["train"]["image"]) > 5 * len(splits["test"]["image"])


def test_the_default_variant_is_32_pixels():
    assert Tfds("photos").open().image_shape == (32, 32, 3)
    assert Tfds("photos").open().num_classes == 2
