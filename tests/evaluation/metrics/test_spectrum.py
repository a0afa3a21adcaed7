"""Power spectra with closed forms."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.spectrum import ROUNDING, luma, radial_power, spectrum_distance


def grey(values):
    return np.rint(values).astype(np.uint8)[..., None]


def ring_sizes(side):
    """Frequencies that round to each radius from 2 on, counted by loops."""
    counts = np.zeros(2 * side, int)
    for y in range(-(side // 2), side - side // 2):
        for x in range(-(side // 2), side - side // 2):
            counts[round(np.hypot(x, y))] += 1
    return counts[2 : side // 2 + 1]


@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
def test_white_noise_has_its_variance_at_every_radius(shape):
    values = np.random.default_rng(0).normal(128, 10, (600, *shape))
    power = radial_power(grey(values))
    assert len(power) == min(shape) // 2 - 1
    np.testing.assert_allclose(power, 100 + ROUNDING, rtol=0.07)
    assert power.mean() == pytest.approx(100 + ROUNDING, rel=0.01)


def test_constant_images_have_no_power_whatever_their_mean():
    flat = np.full((2, 16, 16, 3), 7, np.uint8)
    flat[1] = 201
    np.testing.assert_allclose(radial_power(flat), 0, atol=1e-20)


@pytest.mark.parametrize("cycles", [4, 9])
def test_a_sine_has_its_power_at_its_own_radius(cycles):
    side, amplitude = 32, 100
    wave = 128 + amplitude * np.cos(2 * np.pi * cycles * np.arange(side) / side)
    power = radial_power(grey(np.broadcast_to(wave, (1, side, side))))
    assert power.argmax() == cycles - 2
    # Parseval: the power of all frequencies is the wave's mean square, weighted by the window's square.
    assert (power * ring_sizes(side)).sum() == pytest.approx(side**2 * amplitude**2 / 2, rel=1e-2)
    far = np.abs(np.arange(2, side // 2 + 1) - cycles) > 1
    assert power[far].max() < 1e-3 * power.max()


def test_direction_and_order_do_not_matter():
    images = np.random.default_rng(1).integers(0, 256, (9, 16, 24, 3)).astype(np.uint8)
    np.testing.assert_allclose(radial_power(images), radial_power(images.transpose(0, 2, 1, 3)), rtol=1e-10)
    np.testing.assert_allclose(radial_power(images), radial_power(images[::-1]), rtol=1e-10)


def test_many_images_have_the_mean_of_their_powers():
    images = np.random.default_rng(2).integers(0, 256, (130, 8, 8, 1)).astype(np.uint8)
    singly = [radial_power(images[i : i + 1]) for i in range(len(images))]
    np.testing.assert_allclose(radial_power(images), np.mean(singly, axis=0), rtol=1e-10)


def test_luma_matches_pillow():
    from PIL import Image

    image = np.random.default_rng(3).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    pillows = np.asarray(Image.fromarray(image).convert("L"))
    assert np.abs(luma(image) - pillows).max() <= 0.51
    np.testing.assert_array_equal(luma(image[..., :1]), image[..., 0])


def test_distances_are_in_powers_of_ten():
    power = np.geomspace(1e4, 1, 12)
    assert spectrum_distance(power, power) == 0
    assert spectrum_distance(power, 10 * power) == pytest.approx(1)
    assert spectrum_distance(10 * power, power) == pytest.approx(1)
    mixed = power * np.where(np.arange(12) < 3, 100, 1)
    assert spectrum_distance(mixed, power) == pytest.approx(2 * 3 / 12)
    tilted = power * np.where(np.arange(12) < 6, 10, 0.1)  # too smooth here and too rough there do not cancel
    assert spectrum_distance(100 * tilted, 100 * power) == pytest.approx(1)


def test_power_below_rounding_is_none():
    nothing, little, much = np.zeros(5), np.full(5, ROUNDING / 2), np.full(5, 100 * ROUNDING)
    assert spectrum_distance(nothing, little) == 0
    assert spectrum_distance(nothing, much) == pytest.approx(2)


@pytest.mark.parametrize("shape", [(1, 3, 8, 3), (1, 8, 8, 2)])
def test_images_without_a_spectrum_are_refused(shape):
    with pytest.raises(UserError, match="images="):
        radial_power(np.zeros(shape, np.uint8))
