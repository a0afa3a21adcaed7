"""Clipped scores: the definition, the calibration by simulation, and fractions that are known."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.clipped import ClippedScores, calibrated, clipped_scores, expected_coverage
from tests.evaluation.models import Space, score


def by_definition(real, samples, k):
    """Density and uncalibrated coverage of Salvy et al. 2025, sections 3 and 4, from all differences at once."""

    def distances(x, y):
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(axis=-1))

    among = distances(real, real)
    large = np.sort(among, axis=1)[:, k]  # the first is the vector itself
    small = np.minimum(large, np.median(large))
    to = distances(real, samples)
    mean = np.minimum(1, (to <= small[:, None]).sum(axis=0) / k).mean()
    others = (among <= small[:, None]) & ~np.eye(len(real), dtype=bool)
    ideal = np.minimum(1, others.sum(axis=0) / k).mean()
    return min(1, mean / ideal), np.minimum(1, (to <= large[:, None]).sum(axis=1) / k).mean()


@pytest.mark.parametrize("chunk", [7, 1000])
def test_both_are_the_definition(chunk):
    generator = np.random.default_rng(0)
    real, samples = generator.normal(size=(40, 2)), generator.normal(size=(30, 2)) * 1.5 + 1
    density, coverage = by_definition(real, samples, 3)
    assert 0.05 < density < 1
    assert 0.05 < coverage < 0.95
    found = clipped_scores(real, samples, 3, chunk)
    assert found.density == pytest.approx(density, rel=1e-12)
    assert found.coverage == pytest.approx(calibrated(coverage, 40, 30, 3), rel=1e-12)


def test_the_expected_coverage_is_that_of_simulations_in_any_dimension():
    generator, n, m, k = np.random.default_rng(1), 30, 20, 4
    expected = expected_coverage(n, m, k)
    assert expected[0] == pytest.approx(0, abs=1e-12)
    assert (np.diff(expected) > 0).all()
    for d in (1, 6):
        for good in (3, 20):
            values = []
            for _ in range(200):
                real, samples = generator.normal(size=(n, d)), generator.normal(size=(m, d))
                samples[good:] += 1e3
                values.append(by_definition(real, samples, k)[1])
            assert np.mean(values) == pytest.approx(expected[good], abs=4 * np.std(values) / np.sqrt(200))


def test_the_expected_coverage_where_exchangeable_vectors_have_known_ranks():
    """One sample is among the k nearest of n vectors in k / n of all cases; the nearest of m + n - 1 is a sample in
    m / (m + n - 1)."""
    for n, k in ((2, 1), (7, 3), (40, 5)):
        np.testing.assert_allclose(expected_coverage(n, 1, k), [0, 1 / n], atol=1e-14)
    good = np.arange(21)
    np.testing.assert_allclose(expected_coverage(30, 20, 1), good / (good + 29), atol=1e-13)


@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.2, 0.0])
def test_a_fraction_of_good_samples_scores_this_fraction(fraction):
    generator = np.random.default_rng(2)
    real, samples = generator.normal(size=(600, 5)), generator.normal(size=(600, 5))
    samples[int(600 * fraction) :] += 1e3
    found = clipped_scores(real, samples, 5)
    assert found.density == pytest.approx(fraction, abs=0.06)
    assert found.coverage == pytest.approx(fraction, abs=0.06)


def test_an_outlier_among_the_real_vectors_makes_no_sample_good():
    """Its ball would hold everything: the density of Naeem et al. 2020 counts it."""
    generator = np.random.default_rng(3)
    real = np.concatenate([generator.normal(size=(100, 3)), [[500.0, 0, 0]]])
    far = generator.normal(size=(50, 3)) + np.array([100, 0, 0])
    assert clipped_scores(real, far, 5).density == 0


def test_a_collapsed_set_is_faithful_and_covers_little():
    generator = np.random.default_rng(4)
    real = generator.normal(size=(300, 3))
    samples = np.repeat(real[:3], 100, axis=0)
    found = clipped_scores(real, samples, 5)
    assert found.coverage < 0.1 < 0.5 < found.density


def test_the_metric_states_n_and_an_interval():
    generator = np.random.default_rng(5)
    samples, real = (generator.integers(0, 256, (n, 3, 3, 1)).astype(np.uint8) for n in (60, 50))
    found = score(ClippedScores(Space(), k=3), samples, test=real)
    expected = clipped_scores(Space()(real), Space()(samples), 3)
    assert (found["clipped_density"], found["clipped_coverage"]) == expected[:2]
    assert found["clipped"]["n"] == {"samples": 60, "reference": 50}
    low, high = found["clipped"]["density_interval"]
    assert low < expected.fidelity.mean() < high
    with pytest.raises(UserError, match="samples=3: expected at least 4 images, more than k"):
        score(ClippedScores(Space(), k=3), samples[:3], test=real)
