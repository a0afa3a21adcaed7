from pathlib import Path

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics import precision_recall as neighbours

GOLDENS = Path(__file__).parents[2] / "goldens" / "metrics_features.npz"


def line(*positions):
    return np.array(positions, float)[:, None]


def test_known_answers_on_a_line():
    # Real balls (k=1): [-1, 1], [0, 2], [1, 5]; generated balls: [0.2, 0.6], [0.4, 0.8], [0.6, 19.4].
    real, generated = line(0, 1, 3), line(0.4, 0.6, 10)
    scores = neighbours.manifold_scores(real, generated, (1,))[1]
    assert scores.precision == pytest.approx(2 / 3)  # 10 lies in no real ball
    assert scores.density == pytest.approx((2 + 2 + 0) / 3)
    assert scores.coverage == pytest.approx(2 / 3)  # nothing lies within 2 of 3
    assert scores.recall == pytest.approx(2 / 3)  # the outlier's large ball holds 1 and 3


def test_recall_counts_real_points_on_the_generated_manifold():
    real, generated = line(0, 1, 2, 3), line(0.0, 0.1, 0.2)
    assert neighbours.precision_recall(real, generated, 1) == (1.0, 0.25)


def test_one_repeated_image_is_precise_and_recalls_nothing():
    generator = np.random.default_rng(0)
    real = generator.normal(size=(100, 3))
    precision, recall = neighbours.precision_recall(real, np.repeat(real[:1] + 1e-6, 100, axis=0), 3)
    assert (precision, recall) == (1.0, 0.0)
    _, coverage = neighbours.density_coverage(real, np.repeat(real[:1] + 1e-6, 100, axis=0), 3)
    assert coverage < 0.2


def test_a_set_against_itself_is_perfect():
    points = np.random.default_rng(1).normal(size=(80, 4))
    assert neighbours.precision_recall(points, points, 5) == (1.0, 1.0)
    density, coverage = neighbours.density_coverage(points, points, 5)
    assert coverage == 1.0
    assert density == pytest.approx((5 + 1) / 5)  # every ball holds its centre and k neighbours


def test_sets_far_apart_share_nothing():
    points = np.random.default_rng(2).normal(size=(50, 4))
    assert neighbours.manifold_scores(points, points + 100, (3,))[3] == (0, 0, 0, 0)


@pytest.mark.parametrize("k", [3, 5])
def test_agrees_with_torch_fidelity(k):
    with np.load(GOLDENS) as golden:
        generated, real = golden["in/features_1"].astype(float), golden["in/features_2"].astype(float)
        expected = golden[f"out/prc_k{k}"][:2]
    found = neighbours.precision_recall(real, generated, k)
    np.testing.assert_allclose(found, expected, atol=1e-7)  # stored through float32


def test_density_and_coverage_by_their_definition():
    generator = np.random.default_rng(3)
    real, generated, k = generator.normal(size=(40, 2)), generator.normal(size=(60, 2)) + 0.5, 4
    inside = np.zeros((60, 40), bool)
    for i, x in enumerate(real):
        radius = sorted(np.linalg.norm(x - other) for j, other in enumerate(real) if j != i)[k - 1]
        inside[:, i] = [np.linalg.norm(x - y) <= radius for y in generated]
    density, coverage = neighbours.density_coverage(real, generated, k)
    assert density == pytest.approx(inside.sum() / (k * 60))
    assert coverage == pytest.approx(inside.any(axis=0).mean())


def test_chunks_change_nothing(digits):
    # Distances of digits are full of ties, which rounding would break differently.
    (train, _), (test, _) = digits
    real, generated = test.reshape(297, -1) / 255, train[:400].reshape(400, -1) / 255
    whole = neighbours.manifold_scores(real, generated, (1, 3, 5), chunk=1000)
    assert neighbours.manifold_scores(real, generated, (1, 3, 5), chunk=7) == whole
    whole, parts = (neighbours.nearest(real, generated, 2, chunk) for chunk in (1000, 7))
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_nearest_is_brute_force_and_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(4)
    queries, references = generator.normal(size=(30, 5)), generator.normal(size=(70, 5))
    expected, indices = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(references).kneighbors(queries)
    found, found_indices = neighbours.nearest(queries, references, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(found_indices, indices)
    brute = np.linalg.norm(queries[:, None] - references[None], axis=-1).min(axis=1)
    np.testing.assert_allclose(neighbours.nearest_distances(queries, references), brute, rtol=1e-14)


def test_a_copy_is_at_distance_exactly_zero():
    points = np.random.default_rng(5).uniform(size=(20, 64)) + 1e6
    assert not neighbours.nearest_distances(points, points).any()


def test_more_neighbours_than_points_is_an_error():
    with pytest.raises(UserError, match="k=3: there are 3 points"):
        neighbours.radii(line(0, 1, 2), (3,))
