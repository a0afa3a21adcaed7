"""Plots of many settings: points and levels are where their values say."""

import numpy as np

from jaxdiff.evaluation.plots.trade_offs import COLOURS, GREY, curves_block, front_block


def rows_of(block, colour, columns=slice(None)):
    """Height of the pixels of a colour above the lower edge, on average."""
    pixels = np.asarray(block)[:, columns]
    found = np.argwhere((pixels == colour).all(axis=-1))
    return len(pixels) - found[:, 0].mean()


def test_points_of_the_front_are_in_colour_and_others_are_grey():
    """The dominated point lies below and to the left of the front, of which it has no pixel."""
    block = front_block("title", ("x", "y"), [(0.9, 0.2), (0.2, 0.9), (0.3, 0.3)], [True, True, False])
    empty = front_block("title", ("x", "y"), [(0.9, 0.2), (0.2, 0.9), (0.3, 0.3)], [True, True, True])
    inside = np.asarray(block)[40:240, 60:410]
    assert (inside == COLOURS[0]).all(axis=-1).any()
    assert (inside == GREY).all(axis=-1).sum() > 10
    assert not (np.asarray(empty)[40:240, 60:410] == GREY).all(axis=-1).any()


def test_the_level_of_real_images_lies_between_curves_as_its_value_does():
    curves = {"low": [(1.0, 0.2), (3.0, 0.2)], "high": [(1.0, 0.8), (3.0, 0.8)]}
    block = curves_block("title", ("x", "y"), curves, 0.6)
    low, high = (rows_of(block, COLOURS[i]) for i in range(2))
    level = rows_of(block, GREY, slice(80, 330))
    assert low < level < high
    assert abs((level - low) / (high - low) - 2 / 3) < 0.1
