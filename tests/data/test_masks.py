"""Masks hide pixels with the stated distribution; the known pixels are the image."""

import numpy as np
import pytest
from scipy import ndimage, stats

from jaxdiff.data import images
from jaxdiff.data.degradations import Downsample, Edges, Grayscale, Jpeg
from jaxdiff.data.masks import BoxMask, FreeFormMask, Hint, Masked, OneOf, Uncrop
from jaxdiff.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def is_rectangle(hidden):
    rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
    return hidden.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_a_box_is_a_rectangle_with_sides_in_the_range_anywhere():
    masks = np.stack([BoxMask((0.25, 0.5))(32, 48, rng(i)) for i in range(400)])
    assert all(is_rectangle(hidden) for hidden in masks)
    rows, columns = masks.any(axis=2).sum(axis=1), masks.any(axis=1).sum(axis=1)
    assert (rows.min(), rows.max()) == (8, 16)
    assert (columns.min(), columns.max()) == (12, 24)
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.15
    assert masks.any(axis=0).mean() > 0.98, "each pixel can be hidden"


def test_a_box_can_hide_the_full_image():
    assert BoxMask((1.0, 1.0))(8, 8, rng()).all()


def test_strokes_have_the_given_number_and_width():
    for seed in range(20):
        hidden = FreeFormMask(strokes=(1, 1), brush=(0.1, 0.1))(100, 80, rng(seed))
        assert hidden.shape == (100, 80)
        assert ndimage.label(hidden, np.ones((3, 3)))[1] == 1, "one stroke is in one piece"
        # The widest disc that fits in is the brush, or more where the stroke meets itself.
        assert ndimage.distance_transform_edt(np.pad(hidden, 1)).max() >= 4
    line = FreeFormMask((1, 1), (1, 1), (0.3, 0.3), (0.1, 0.1))
    areas = np.array([line(100, 100, rng(seed)).sum() for seed in range(200)])
    # A straight stroke of length 30 and width 10 has rounded ends; at the border, a part of it is outside.
    assert abs(np.quantile(areas, 0.75) - (30 * 10 + np.pi * 25)) < 40
    pieces = [ndimage.label(FreeFormMask((3, 3), brush=(0.01, 0.01))(99, 99, rng(i)))[1] for i in range(50)]
    assert max(pieces) >= 3


def test_strokes_hide_all_regions_equally_often():
    hidden = np.mean([FreeFormMask()(32, 32, rng(i)) for i in range(600)], axis=0)
    assert 0.05 < hidden.mean() < 0.4
    assert hidden.min() > 0.02
    left, right, top, bottom = hidden[:, :16], hidden[:, 16:], hidden[:16], hidden[16:]
    assert abs(left.mean() / right.mean() - 1) < 0.15
    assert abs(top.mean() / bottom.mean() - 1) < 0.15


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_uncrop_hides_its_fraction_on_one_side_or_on_all_four(fraction):
    masks = np.stack([Uncrop(fraction)(32, 32, rng(i)) for i in range(400)])
    around = masks[:, 0].all(axis=1) & masks[:, -1].all(axis=1) & masks[:, :, 0].all(axis=1)
    assert abs(around.mean() - 0.5) < 0.1
    assert all(is_rectangle(~hidden) for hidden in masks)
    middle = np.mean(np.argwhere(~masks[around][0]), axis=0)
    assert np.abs(middle - 15.5).max() <= 0.5, "the known part is in the middle"
    assert np.abs(masks[around].mean(axis=(1, 2)) - fraction).max() < 0.06
    one = masks[~around]
    assert np.abs(one.mean(axis=(1, 2)) - fraction).max() < 0.02
    ends = [
        one[:, 0].all(axis=1),
        one[:, -1].all(axis=1),
        one[:, :, 0].all(axis=1),
        one[:, :, -1].all(axis=1),
    ]
    assert np.array_equal(np.sum(ends, axis=0), np.ones(len(one))), "exactly one side"
    assert np.abs(np.mean(ends, axis=1) - 0.25).max() < 0.1
    assert Uncrop(0.5, four_sides=0.0)(32, 20, rng()).shape == (32, 20)


@pytest.mark.parametrize("fill", ["noise", -0.5])
@pytest.mark.parametrize("channel", [True, False])
def test_known_pixels_are_the_image_and_hidden_ones_do_not_depend_on_it(fill, channel):
    image = rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    mask = BoxMask((0.5, 0.5))
    shown = Masked(mask, fill, channel)(image, rng(7))
    other = Masked(mask, fill, channel)(255 - image, rng(7))
    hidden = mask(64, 64, rng(7))
    assert shown.dtype == np.float32
    assert shown.shape == (64, 64, 3 + channel)
    assert np.array_equal(shown[~hidden][:, :3], images.to_float(image)[~hidden])
    assert np.array_equal(shown[hidden], other[hidden]), "nothing hidden depends on the image"
    if channel:
        assert np.array_equal(shown[..., 3], np.where(hidden, -1, 1))
    if fill == "noise":
        assert stats.kstest(shown[hidden][:, :3].ravel(), "norm").pvalue > 0.01
    else:
        assert (shown[hidden][:, :3] == np.float32(fill)).all()


def test_one_of_several_masks_is_drawn_each_equally_often():
    kinds = OneOf((BoxMask((1.0, 1.0)), BoxMask((0.5, 0.5)), Uncrop(0.25, four_sides=0.0)))
    fractions = [round(kinds(8, 8, rng(seed)).mean(), 2) for seed in range(600)]
    assert set(fractions) == {1.0, 0.25}, "a box of half the sides is a quarter"
    assert abs(np.mean(np.equal(fractions, 1.0)) - 1 / 3) < 0.06


class Smooth:
    """A degradation that returns floats."""

    def __call__(self, image, rng):
        return images.to_float(image) / 2 + rng.standard_normal()


@pytest.mark.parametrize("degradation", [Grayscale(), Grayscale(3), Edges(), Jpeg((5, 5)), Smooth()])
def test_a_hint_is_the_degraded_image_with_no_known_pixel(degradation):
    image = rng(1).integers(0, 256, (16, 24, 3), np.uint8)
    hint = Hint(degradation)(image, rng(3))
    assert (hint.shape, hint.dtype) == ((16, 24, 4), np.float32)
    assert np.all(hint[..., 3] == -1)
    left = degradation(image, rng(3))
    left = images.to_float(left) if left.dtype == np.uint8 else left.astype(np.float32)
    assert np.array_equal(hint[..., :3], np.broadcast_to(left, image.shape))


def test_a_hint_of_another_size_is_refused():
    with pytest.raises(
        UserError, match=r"degradation=Down.*\[16, 16, 3\] or a single channel, got \[8, 8, 3\]. Fix"
    ):
        Hint(Downsample(2))(np.zeros((16, 16, 3), np.uint8), rng())
    with pytest.raises(
        UserError, match=r"degradation=Grayscale.*\[16, 16, 1\] or a single channel, got \[16, 16, 3\]"
    ):
        Hint(Grayscale(3))(np.zeros((16, 16, 1), np.uint8), rng())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoxMask((0.0, 0.5)), "side"),
        (lambda: BoxMask((0.6, 0.5)), "side"),
        (lambda: BoxMask((0.6, 1.5)), "side"),
        (lambda: FreeFormMask(strokes=(0, 2)), "strokes"),
        (lambda: FreeFormMask(vertices=(3, 2)), "vertices"),
        (lambda: FreeFormMask(length=(0.0, 0.1)), "length"),
        (lambda: FreeFormMask(brush=(0.2, 0.1)), "brush"),
        (lambda: Uncrop(1.0), "fraction"),
        (lambda: Uncrop(four_sides=2.0), "four_sides"),
        (lambda: OneOf(()), "masks"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
