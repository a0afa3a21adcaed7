"""Positions of digits: the overlap of their boxes with those of the requested scene."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Row
from jaxdiff.evaluation.metrics.running import Mean, MeanMetric
from jaxdiff.evaluation.scenes.classifier import Scenes, in_reading_order
from jaxdiff.evaluation.scenes.ink import FAINT, fullest, ink_of, is_digit, strips

BOXES = "boxes"
"""The field of examples with the boxes of all digits."""


@dataclasses.dataclass(frozen=True)
class BoxOverlap(MeanMetric):
    """Intersection over union of the digits' boxes with those of the requested scene; nothing without `BOXES`.

    The digits' areas are united before they are compared. See `boxes_of`: neither digit nor colour has an effect.
    """

    def mean(self, batch: Batch) -> Mean:
        if BOXES not in batch.fields:
            return Mean()
        overlaps = overlap(boxes_of(batch.images, batch.fields), requested_boxes(batch.fields))
        return Mean(float(overlaps.sum()), len(overlaps))

    def compute(self, state: Mean) -> dict[str, Any]:
        return {} if state.value is None else {"overlap": state.value}

    def table(self) -> Sequence[Row]:
        return [Row("overlap of boxes (IoU)", "overlap", decimals)]


def boxes_of(
    images: UInt8[np.ndarray, "n height width 3"], scenes: Scenes
) -> Bool[np.ndarray, "n height width"]:
    """The pixels in boxes of digits.

    A box is the square of a scan with the most ink in a digit's strip of the canvas. An image whose ink does not fit
    into the strips of the requested layout has no boxes.
    """
    from jaxdiff.data.scenes import SIDE

    truth, covered = in_reading_order(scenes), np.zeros(images.shape[:3], bool)
    for i, ink in enumerate(ink_of(images, FAINT)):
        for rows, columns in strips(ink, int(truth.count[i]), bool(truth.stacked[i])):
            strip = ink[rows, columns]
            if is_digit(strip):
                down, across = fullest(strip.sum(axis=1), SIDE), fullest(strip.sum(axis=0), SIDE)
                covered[i, rows, columns][down, across] = True
    return covered


def requested_boxes(scenes: Scenes) -> Bool[np.ndarray, "n height width"]:
    """The pixels in the boxes of the scenes' digits."""
    from jaxdiff.data.scenes import SIZE

    covered = np.zeros((len(scenes[BOXES]), SIZE, SIZE), bool)
    for pixels, boxes, count in zip(covered, scenes[BOXES], scenes["count"], strict=True):
        for top, left, bottom, right in boxes[:count]:
            pixels[top:bottom, left:right] = True
    return covered


def overlap(
    found: Bool[np.ndarray, "n height width"], expected: Bool[np.ndarray, "n height width"]
) -> Float64[np.ndarray, "n"]:
    """Intersection over union of regions (the Jaccard index)."""
    both, either = (found & expected).sum(axis=(1, 2)), (found | expected).sum(axis=(1, 2))
    return both / np.maximum(either, 1)
