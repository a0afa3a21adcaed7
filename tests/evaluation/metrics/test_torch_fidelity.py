"""Values of torch-fidelity on the same features, as it computes them here; skipped where it is not installed."""

import numpy as np
import pytest

from jaxdiff.evaluation.metrics.frechet import frechet_distance
from jaxdiff.evaluation.metrics.mmd import polynomial_mmd
from jaxdiff.evaluation.metrics.moments import fit

WHY = "torch-fidelity is not installed"


@pytest.fixture(scope="module")
def features():
    """Two sets of vectors, float32, of different means and covariances."""
    generator = np.random.default_rng(0)
    a = generator.normal(size=(400, 64)) @ generator.normal(size=(64, 64))
    b = generator.normal(size=(500, 64)) @ generator.normal(size=(64, 64)) + 0.5
    return a.astype(np.float32) / 8, b.astype(np.float32) / 8


def test_the_frechet_distance_of_the_same_features(features):
    fidelity = pytest.importorskip("torch_fidelity.metric_fid", reason=WHY)
    torch = pytest.importorskip("torch")
    statistics = [fidelity.fid_features_to_statistics(torch.from_numpy(rows)) for rows in features]
    (value,) = fidelity.fid_statistics_to_metric(*statistics, False).values()
    a, b = map(fit, features)
    assert frechet_distance(a, b) == pytest.approx(value, rel=1e-6)
