"""Nearest neighbours against brute force and another library."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.neighbours import nearest, radii


def test_chunks_change_nothing(digits):
    # Distances of digits are full of ties, which rounding would break differently.
    (train, _), (test, _) = digits
    real, generated = test.reshape(297, -1) / 255, train[:400].reshape(400, -1) / 255
    np.testing.assert_array_equal(radii(real, (1, 3), chunk=1000), radii(real, (1, 3), chunk=7))
    once, parts = (nearest(real, generated, 2, chunk) for chunk in (1000, 7))
    np.testing.assert_array_equal(once[0], parts[0])
    np.testing.assert_array_equal(once[1], parts[1])


def test_nearest_is_brute_force_and_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(4)
    queries, references = generator.normal(size=(30, 5)), generator.normal(size=(70, 5))
    expected, indices = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(references).kneighbors(queries)
    found, found_indices = nearest(queries, references, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(found_indices, indices)
    brute = np.linalg.norm(queries[:, None] - references[None], axis=-1).min(axis=1)
    np.testing.assert_allclose(nearest(queries, references)[0][:, 0], brute, rtol=1e-14)


def test_a_copy_is_at_distance_exactly_zero():
    points = np.random.default_rng(5).uniform(size=(20, 64)) + 1e6
    assert not nearest(points, points)[0].any()


def test_more_neighbours_than_points_is_an_error():
    points = np.arange(3.0)[:, None]
    with pytest.raises(UserError, match=r"k=3: .*for 3 points"):
        radii(points, (3,))
    with pytest.raises(UserError, match=r"k=4: .*the number of references"):
        nearest(points, points, 4)
