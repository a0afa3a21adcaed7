"""Patches: their order, their statistics, and the structure that a distance depends on."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.metrics import moments


def noise(n, height=14, width=11, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels)).astype(np.uint8)


def naive(images, size, stride, touching=None):
    """Patches by loops."""
    rows = []
    for i, image in enumerate(images):
        for top in range(0, image.shape[0] - size + 1, stride):
            for left in range(0, image.shape[1] - size + 1, stride):
                square = np.s_[top : top + size, left : left + size]
                if touching is None or touching[i][square].any():
                    rows.append(image[square].reshape(-1) / 255)
    return np.array(rows)


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (4, 3), (1, 1), (11, 11)])
def test_rows_are_all_patches_in_order(size, stride):
    images = noise(3)
    np.testing.assert_array_equal(Patches(size, stride)(images), naive(images, size, stride))


def test_only_patches_that_touch_a_pixel_are_kept():
    images, touching = noise(4), np.zeros((4, 14, 11), bool)
    touching[0, 5, 6], touching[2, 13, 10], touching[3, :2] = True, True, True
    found = Patches(4, 2)(images, touching)
    np.testing.assert_array_equal(found, naive(images, 4, 2, touching))
    assert 0 < len(found) < len(Patches(4, 2)(images))


@pytest.mark.parametrize("some", [False, True], ids=["all", "touching"])
def test_streamed_statistics_match_all_patches_at_once(some):
    images, touching = noise(20), np.zeros((20, 14, 11), bool)
    touching[7, 3, 3], touching[12] = True, True
    chosen = touching if some else None
    # A few images at once, some without a touched patch.
    found, direct = Patches(4, 2).fit(images, chosen, chunk=50), moments.fit(naive(images, 4, 2, chosen))
    assert found.n == direct.n
    np.testing.assert_allclose(found.mean, direct.mean, atol=1e-14)
    np.testing.assert_allclose(found.covariance, direct.covariance, atol=1e-14)


def test_the_order_of_images_does_not_matter():
    images, others = noise(20), noise(20, seed=1) // 2
    features = Patches(4, 2)
    shuffled = images[np.random.default_rng(2).permutation(20)]
    assert features.distance(images, shuffled) < 1e-12
    assert features.distance(images, others) == pytest.approx(features.distance(shuffled, others), rel=1e-10)


def test_a_shift_of_all_levels_has_a_closed_form():
    """Covariances are equal, so that the distance is that of the means, once for each number of a patch."""
    images = noise(30) // 2
    assert Patches(4, 2).distance(images, images + 3) == pytest.approx(48 * (3 / 255) ** 2, rel=1e-6)


def test_a_distance_sees_structure_up_to_the_size_of_a_patch():
    """Pairs of equal columns, against the same pixels in another order."""
    pairs = noise(200, 8, 4, 1).repeat(2, axis=2)
    mixed = np.random.default_rng(1).permuted(pairs, axis=2)
    single, double = (Patches(size, 1).distance(pairs, mixed) for size in (1, 2))
    assert single < 1e-10
    assert double > 0.005


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Patches(0), "size=0"),
        (lambda: Patches(4, 5), "stride=5"),
        (lambda: Patches(12, 4)(noise(1)), "size=12.*14 x 11"),
        (lambda: Patches(4, 2).fit(noise(1), np.zeros((1, 14, 11), bool)), "touching"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
