"""Baselines: interpolation and mean colours in closed form."""

import numpy as np
import pytest

from jaxdiff.data.images import to_float
from jaxdiff.errors import UserError
from jaxdiff.evaluation.baselines import Enlarged, MeanColour, known, levels
from jaxdiff.evaluation.metrics.spectrum import luma


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def with_alpha(image, where):
    """The image as floats, transparent except `where`."""
    alpha = np.where(where, 1.0, -1.0)[..., None]
    return np.concatenate([to_float(image), alpha], axis=-1).astype(np.float32)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_ramp_stays_a_ramp(factor):
    """Cubic interpolation is exact for polynomials of first degree, away from the border."""
    ramp = np.broadcast_to(20 * np.arange(12, dtype=np.uint8), (2, 12, 12))[..., None]
    large = Enlarged(factor)(ramp)
    expected = 20 * ((np.arange(12 * factor) + 0.5) / factor - 0.5)
    inner = slice(2 * factor, -2 * factor)
    assert large.shape == (2, 12 * factor, 12 * factor, 1)
    assert np.abs(large[:, :, inner, 0] - expected[inner]).max() <= 0.5 + 1e-9


def test_nearest_repeats_pixels():
    small = noise(2, 3, 4, 3)
    squares = small.repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_array_equal(Enlarged(3, "nearest")(small), squares)


def test_bytes_and_floats_are_the_same_condition():
    small = noise(2, 5, 5, 3)
    np.testing.assert_array_equal(Enlarged(2)(to_float(small)), Enlarged(2)(small))
    np.testing.assert_allclose(levels(to_float(small)), small, atol=1e-4)
    source = with_alpha(noise(1, 4, 4, 3), np.eye(4, dtype=bool)[None])
    pixels = np.rint(levels(source)).astype(np.uint8)
    np.testing.assert_array_equal(MeanColour((1.0, 2.0, 3.0))(pixels), MeanColour((1.0, 2.0, 3.0))(source))


def test_unknown_pixels_get_the_mean_of_the_training_images():
    train, image = noise(10, 4, 4, 3), noise(3, 8, 8, 3, seed=1)
    where = noise(3, 8, 8, seed=2) < 100
    baseline = MeanColour.of([train[:3], train[3:]])
    made = baseline(with_alpha(image, where))
    np.testing.assert_array_equal(known(with_alpha(image, where)), where)
    np.testing.assert_array_equal(made[where], image[where])
    assert (made[~where] == np.rint(train.mean(axis=(0, 1, 2)))).all()
    np.testing.assert_allclose(baseline.colour, train.mean(axis=(0, 1, 2)), rtol=1e-12)


def test_half_transparent_pixels_are_not_known():
    source = np.zeros((1, 1, 4, 4), np.float32)
    source[..., 3] = (-1, 0, 0.99, 1)
    assert known(source).tolist() == [[[False, False, False, True]]]
    pixels = np.zeros((1, 1, 4, 4), np.uint8)
    pixels[..., 3] = (0, 1, 254, 255)
    assert known(pixels).tolist() == [[[False, False, False, True]]]


def test_luma_of_the_hint_is_kept_and_chroma_is_the_means():
    hint = np.tile(np.arange(60, 190, 2, dtype=np.uint8)[None, None, :, None], (1, 4, 1, 3))
    where = np.zeros(hint.shape[:3], bool)
    where[:, :2] = True
    baseline = MeanColour((120.0, 100.0, 60.0), keep_luma=True)
    made = baseline(with_alpha(hint, where))
    np.testing.assert_array_equal(made[where], hint[where])
    tinted = made[~where].astype(float)
    assert np.abs(luma(tinted) - luma(hint[~where])).max() <= 0.5
    # Cb and Cr are multiples of blue and red less luma.
    for channel, chroma in ((0, 120.0), (2, 60.0)):
        found = tinted[:, channel] - luma(tinted)
        assert np.abs(found - (chroma - luma(np.array([baseline.colour])))).max() <= 1


def test_the_luma_of_a_grey_mean_is_the_hint_itself():
    hint = noise(2, 5, 5, 1).repeat(3, axis=-1)
    source = with_alpha(hint, np.zeros((2, 5, 5), bool))
    np.testing.assert_array_equal(MeanColour((80.0,) * 3, keep_luma=True)(source), hint)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Enlarged(1), "factor=1"),
        (lambda: MeanColour((1.0,))(np.zeros((1, 2, 2, 4), np.float32)), "colour=.*3 levels"),
        (lambda: levels(np.zeros(3, np.int32)), "int32"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
