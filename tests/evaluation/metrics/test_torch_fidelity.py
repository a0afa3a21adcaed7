"""Values of torch-fidelity on the same features, as it computes them here; skipped where it is not installed."""

import numpy as np
import pytest

from jaxdiff.evaluation.metrics.frechet import frechet_distance
from jaxdiff.evaluation.metrics.inception_score import inception_score
from jaxdiff.evaluation.metrics.mmd import polynomial, squared_mmd
from jaxdiff.evaluation.metrics.moments import fit

WHY = "torch-fidelity is not installed"


def library(name):
    """A module of torch-fidelity, and torch."""
    return pytest.importorskip(f"torch_fidelity.{name}", reason=WHY), pytest.importorskip("torch", reason=WHY)


@pytest.fixture(scope="module")
def features():
    """Two sets of vectors, float32, of different means and covariances."""
    generator = np.random.default_rng(0)
    a, b = (generator.normal(size=(400, 64)) @ generator.normal(size=(64, 64)) / 8 for _ in range(2))
    return a.astype(np.float32), (b + 0.5).astype(np.float32)


def test_the_frechet_distance(features):
    fidelity, torch = library("metric_fid")
    statistics = [fidelity.fid_features_to_statistics(torch.from_numpy(rows)) for rows in features]
    (value,) = fidelity.fid_statistics_to_metric(*statistics, False).values()
    # torch-fidelity takes the mean in float32.
    assert frechet_distance(*map(fit, features)) == pytest.approx(value, rel=1e-6)


def test_the_kernel_distance_of_all_rows(features):
    fidelity, torch = library("metric_kid")
    found = fidelity.kid_features_to_metric(
        *map(torch.from_numpy, features), kid_subsets=1, kid_subset_size=400, rng_seed=0, verbose=False
    )
    assert squared_mmd(*features, polynomial) == pytest.approx(
        found["kernel_inception_distance_mean"], rel=1e-4
    )


@pytest.mark.parametrize("splits", [1, 7])
def test_the_inception_score(features, splits):
    fidelity, torch = library("metric_isc")
    found = fidelity.isc_features_to_metric(torch.from_numpy(features[0]), splits, shuffle=False)
    scores = inception_score(features[0], splits)
    assert scores.mean() == pytest.approx(found["inception_score_mean"], rel=1e-9)
    assert scores.std() == pytest.approx(found["inception_score_std"], rel=1e-9, abs=1e-12)
