"""The overlap of boxes measures positions: it is exact for squares, and sees neither digits nor colours."""

import numpy as np
import pytest

from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.scenes import SIZE
from jaxdiff.data.sources import Tfds
from jaxdiff.evaluation.metric import Batch
from jaxdiff.evaluation.scenes.classifier import FIELDS
from jaxdiff.evaluation.scenes.overlap import BoxOverlap

METRIC = BoxOverlap()


@pytest.fixture(scope="module")
def scenes():
    return Pipeline(Tfds("scenes", "novel[:200]", label_key=None, fields=(*FIELDS, "boxes"))).all()


def measured(images, scenes):
    n = len(images)
    batch = Batch("samples", images, scenes, np.zeros(n, int), np.arange(n))
    return METRIC.compute(METRIC.update(METRIC.init(), batch)).get("overlap")


def rows(scenes, chosen):
    return {name: values[chosen] for name, values in scenes.items()}


def squares(scenes, down=0, across=0, colour=(60, 90, 255)):
    """The scenes with a full square in each box, moved."""
    images = np.zeros((len(scenes["count"]), SIZE, SIZE, 3), np.uint8)
    for image, boxes, count in zip(images, scenes["boxes"], scenes["count"], strict=True):
        for top, left, bottom, right in boxes[:count]:
            image[top + down : bottom + down, left + across : right + across] = colour
    return images


def test_squares_in_the_boxes_overlap_entirely(scenes):
    for colour in ((60, 90, 255), (240, 220, 50)):
        assert measured(squares(scenes, colour=colour), scenes) == 1.0


def test_a_moved_square_overlaps_by_the_closed_form(scenes):
    inside = (scenes["boxes"][:, 0, :2].max(axis=1) <= 12) & (scenes["count"] == 1)
    single = rows(scenes, inside)
    for down, across in ((0, 1), (1, 1), (2, 3)):
        both = (8 - down) * (8 - across)
        found = measured(squares(single, down, across), single)
        assert found == pytest.approx(both / (2 * 64 - both))


def test_real_digits_fill_their_boxes_nearly(scenes):
    assert measured(scenes["image"], scenes) > 0.9


def test_digits_elsewhere_overlap_little(scenes):
    order = np.roll(np.arange(len(scenes["count"])), 1)
    assert measured(scenes["image"][order], scenes) < 0.3


def test_an_empty_image_or_another_layout_has_no_boxes(scenes):
    assert measured(np.zeros_like(scenes["image"]), scenes) == 0.0
    three = rows(scenes, scenes["count"] == 3)
    beside, above = (rows(three, np.isin(three["relation"], kinds)) for kinds in ((1, 2), (3, 4)))
    n = min(len(beside["count"]), len(above["count"]))
    assert measured(beside["image"][:n], rows(above, slice(n))) == 0.0


def test_scenes_without_boxes_have_no_value(scenes):
    without = {name: scenes[name] for name in FIELDS}
    assert measured(scenes["image"], without) is None
