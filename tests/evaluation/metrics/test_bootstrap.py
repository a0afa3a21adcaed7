"""Bootstrap: intervals that hold the truth as often as they say, and standard errors that are known."""

import itertools

import numpy as np
import pytest

from jaxdiff.evaluation.metrics.bootstrap import SMALL, counts, interval, spread


def test_resamples_have_the_size_of_the_sample_and_are_reproducible():
    found = list(counts(30, 5, seed=2))
    assert [row.sum() for row in found] == [30] * 5
    np.testing.assert_array_equal(found, list(counts(30, 5, seed=2)))
    assert any((a != b).any() for a, b in itertools.pairwise(found))


def test_an_interval_holds_the_true_mean_in_about_95_of_100_samples():
    generator = np.random.default_rng(0)
    ends = [interval((generator.random(60) < 0.3).astype(float), 200) for _ in range(150)]
    held = np.mean([low <= 0.3 <= high for low, high in ends])
    assert 0.87 < held < 0.995


def test_an_interval_of_95_percent_is_1_96_standard_errors_wide_on_either_side():
    values = np.random.default_rng(2).normal(size=2000)
    low, high = interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(2000), rel=0.08)


def test_the_spread_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(1).normal(size=400) * 3
    found = spread(lambda weights: float(weights @ values / 400), 400, 1000)
    assert found == pytest.approx(values.std() / 20, rel=0.1)


def test_large_samples_and_single_ones_have_no_interval():
    assert interval(np.zeros(SMALL + 1)) is None
    assert interval(np.zeros(1)) is None
    assert interval(np.full(5, 2.0)) == [2.0, 2.0]
