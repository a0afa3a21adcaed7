"""Distances of all pairs: split over devices they are those of one, of SciPy, and of the definition."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxdiff.evaluation.metrics.distances import BLOCK, distances_to, on_devices


@pytest.fixture(scope="module")
def vectors():
    generator = np.random.default_rng(0)
    return generator.normal(size=(9, 33)).astype(np.float32), generator.normal(size=(BLOCK + 70, 33))


def test_devices_agree_with_scipy_in_float64(vectors):
    queries, references = vectors
    found = on_devices(references, jax.devices())(queries)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, cdist(queries, references), rtol=1e-13)
    np.testing.assert_allclose(distances_to(references)(queries), found, rtol=1e-13)


def test_eight_devices_give_the_bits_of_one(vectors):
    queries, references = vectors
    one, eight = (on_devices(references, jax.devices()[:n])(queries) for n in (1, 8))
    np.testing.assert_array_equal(one, eight)
    np.testing.assert_array_equal(on_devices(references, jax.devices())(queries[4:5]), eight[4:5])


def test_copies_are_at_zero_and_both_directions_are_equal(vectors):
    points = vectors[1][:50] + 1e6
    found = on_devices(points, jax.devices())(points)
    np.testing.assert_array_equal(np.diag(found), 0)
    np.testing.assert_array_equal(found, found.T)
