"""Comparisons with the truth, in closed form."""

import numpy as np
import pytest

from jaxdiff.data.images import to_float
from jaxdiff.errors import UserError
from jaxdiff.evaluation.baselines import Enlarged
from jaxdiff.evaluation.metrics import paired


@pytest.fixture
def truth():
    return np.random.default_rng(0).integers(20, 230, (6, 8, 12, 3)).astype(np.uint8)


def test_a_shift_by_three_levels(truth):
    for shifted in (truth + 3, truth - 3):
        assert paired.rms(shifted, truth) == pytest.approx(3)
        assert paired.mean_colour_error(shifted, truth).value == pytest.approx(3)
        assert paired.psnr(paired.squared_error(shifted, truth)) == pytest.approx(10 * np.log10(255**2 / 9))


def test_mean_colours_are_per_image_and_channel(truth):
    """Shifts that cancel over images or channels count; details do not."""
    signs = np.where(np.arange(6) % 2, 1, -1)[:, None, None, None] * np.array([1, -1, 1])
    assert paired.mean_colour_error((truth + 3 * signs).astype(np.uint8), truth).value == pytest.approx(3)
    one = truth.copy()
    one[2, ..., 1] += 6
    assert paired.mean_colour_error(one, truth).value == pytest.approx(6 / (6 * 3))
    assert paired.mean_colour_error(truth[:, ::-1, ::-1], truth).value == pytest.approx(0)


def test_nothing_is_nearer_than_the_truth(truth):
    assert paired.rms(truth, truth) == 0
    assert paired.psnr(paired.squared_error(truth, truth)) is None


def test_similarity_is_that_of_the_definition():
    """A window at a time, with the weights of a Gaussian; sums of weights are 1."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 256, (2, 13, 12, 3)).astype(np.uint8)
    images = np.clip(truth + rng.normal(0, 25, truth.shape), 0, 255).astype(np.uint8)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2, found = 6.5025, 58.5225, []
    for a, b in zip(images.astype(float), truth.astype(float), strict=True):
        of_image = []
        for y, x, channel in np.ndindex(13 - 10, 12 - 10, 3):
            p, q = (v[y : y + 11, x : x + 11, channel] for v in (a, b))
            mp, mq = np.sum(weights * p), np.sum(weights * q)
            vp, vq = np.sum(weights * (p - mp) ** 2), np.sum(weights * (q - mq) ** 2)
            both = np.sum(weights * (p - mp) * (q - mq))
            of_image.append((2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
        found.append(np.mean(of_image))
    assert paired.ssim(images, truth).value == pytest.approx(np.mean(found), rel=1e-9)
    assert paired.ssim(truth, truth).value == pytest.approx(1, abs=1e-12)
    assert paired.ssim(images, truth).value == pytest.approx(paired.ssim(truth, images).value, rel=1e-12)
    with pytest.raises(UserError, match=r"images=\(10, 12\): expected sides of at least 11 for SSIM"):
        paired.ssim(images[:, :10], truth[:, :10])


def test_similarity_is_scikit_image_s():
    skimage = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 256, (3, 24, 20, 3)).astype(np.uint8)
    images = np.clip(truth + rng.normal(0, 30, truth.shape), 0, 255).astype(np.uint8)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    pairs = zip(images, truth, strict=True)
    expected = [skimage.structural_similarity(a, b, channel_axis=2, **options) for a, b in pairs]
    assert paired.ssim(images, truth).value == pytest.approx(np.mean(expected), rel=1e-6)


def test_errors_count_the_given_pixels_only(truth):
    where = np.zeros(truth.shape[:3], bool)
    where[:, :2] = True
    changed = truth.copy()
    changed[:, :2] += 4
    assert paired.rms(changed, truth, where) == pytest.approx(4)
    assert paired.rms(changed, truth, ~where) == 0
    assert paired.rms(changed, truth) == pytest.approx(2)


def test_squares_of_the_small_image_agree_with_it(truth):
    small = truth[:, :2, :3]
    for given in (small, to_float(small)):
        assert paired.inconsistency(Enlarged(4, "nearest")(small), given, 4).root == pytest.approx(
            0, abs=1e-4
        )
    assert paired.inconsistency(Enlarged(4, "nearest")(small) + 5, small, 4).root == pytest.approx(5)


def test_the_truth_agrees_up_to_rounding(truth):
    exact = truth.reshape(6, 2, 4, 3, 4, 3).astype(float).mean(axis=(2, 4))
    rounded = np.rint(exact).astype(np.uint8)
    expected = np.sqrt(((exact - rounded) ** 2).mean())
    assert paired.inconsistency(truth, rounded, 4).root == pytest.approx(expected)
    assert 0.2 < expected < 0.35  # about 1 / sqrt(12)


def test_details_below_the_resolution_of_the_small_image_are_free(truth):
    small = truth[:, :2, :3]
    checked = Enlarged(4, "nearest")(small).astype(int)
    checked += 20 * np.where(np.indices((8, 12)).sum(axis=0) % 2, 1, -1)[..., None]
    assert paired.inconsistency(checked.astype(np.uint8), small, 4).root == pytest.approx(0)


def test_a_wrong_factor_is_named(truth):
    with pytest.raises(UserError, match="factor=2"):
        paired.inconsistency(truth, truth[:, :2, :3], 2)


def test_one_level_at_one_pixel_changes_the_error(truth):
    known = np.zeros(truth.shape[:3], bool)
    known[:, :4] = True
    assert paired.fraction_kept(truth, truth, known).value == 1
    changed = truth.copy()
    changed[:, 4:] += 9
    assert paired.fraction_kept(changed, truth, known).value == 1
    changed[3, 2, 5, 1] += 1
    assert paired.fraction_kept(changed, truth, known).value == pytest.approx(1 - 1 / known.sum())
    assert paired.fraction_kept(changed, truth, ~known).value == 0
    assert paired.fraction_kept(changed, truth, np.zeros_like(known)).value is None


def test_diversity_of_two_is_their_difference_by_root_two(truth):
    where = np.zeros(truth.shape[:3], bool)
    where[0] = True
    samples = np.stack([truth, truth])
    samples[1, 0] += 7
    assert paired.diversity(samples, where).value == pytest.approx(7 / np.sqrt(2))
    assert paired.diversity(samples, ~where).value == 0
    assert paired.diversity(samples).value == pytest.approx(7 / np.sqrt(2) / 6)
    assert paired.diversity(samples[:1]).value is None


def test_diversity_is_the_standard_deviation_of_the_samples_distribution():
    samples = np.rint(np.random.default_rng(1).normal(128, 12, (40, 2, 20, 20, 3))).astype(np.uint8)
    assert paired.diversity(samples).value == pytest.approx(12, rel=0.02)
