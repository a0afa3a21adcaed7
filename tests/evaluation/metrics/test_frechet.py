import json
from pathlib import Path

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.frechet import (
    Frechet,
    Gaussian,
    fit,
    fit_stream,
    frechet_distance,
    load,
    merge,
    save,
)
from tests.evaluation.models import batches

GOLDENS = Path(__file__).parents[2] / "goldens" / "metrics_features.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS) as file:
        assert json.loads(str(file["meta"]))["arrays"]["in/features_1"].startswith("generated")
        return {name: file[name] for name in file.files}


def rotation(d):
    return np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]


def test_commuting_covariances_have_a_closed_form():
    basis, generator = rotation(6), np.random.default_rng(1)
    s, t, shift = generator.uniform(0.1, 3, 6), generator.uniform(0.1, 3, 6), generator.normal(size=6)
    a = Gaussian(np.zeros(6), basis @ np.diag(s**2) @ basis.T, 10)
    b = Gaussian(shift, basis @ np.diag(t**2) @ basis.T, 10)
    np.testing.assert_allclose(frechet_distance(a, b), shift @ shift + ((s - t) ** 2).sum(), rtol=1e-12)


def test_agrees_with_scipy_sqrtm_and_is_symmetric():
    import scipy.linalg

    generator = np.random.default_rng(2)
    a = fit(generator.normal(size=(200, 20)) @ generator.normal(size=(20, 20)))
    b = fit(generator.normal(size=(300, 20)) @ generator.normal(size=(20, 20)) + 1.0)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    shift = a.mean - b.mean
    expected = shift @ shift + np.trace(a.covariance + b.covariance - 2 * root.real)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-12)


@pytest.mark.parametrize("n", [5, 200])
def test_distance_to_itself_is_zero_also_when_the_covariance_is_singular(n):
    a = fit(np.random.default_rng(3).normal(size=(n, 30)) * 100)
    assert 0 <= frechet_distance(a, a) < 1e-8


def test_singular_covariances_have_a_closed_form():
    along_x, along_y = np.diag([4.0, 0, 0]), np.diag([0, 9.0, 0])
    a, b = (Gaussian(np.zeros(3), covariance, 10) for covariance in (along_x, along_y))
    np.testing.assert_allclose(frechet_distance(a, b), 4 + 9, rtol=1e-14)


def test_statistics_match_numpy():
    features = np.random.default_rng(4).normal(size=(50, 7))
    found = fit(features)
    np.testing.assert_allclose(found.mean, features.mean(axis=0), atol=1e-15)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), atol=1e-14)
    assert found.n == 50


def test_streaming_over_uneven_batches_is_direct():
    features = np.random.default_rng(5).normal(size=(500, 9)) + 1e3
    streamed = fit_stream(np.split(features, [1, 2, 7, 130, 499]))
    direct = fit(features)
    np.testing.assert_allclose(streamed.mean, direct.mean, rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance, direct.covariance, atol=1e-11)
    assert streamed.n == direct.n


def test_merge_does_not_depend_on_the_order():
    first, second = np.split(np.random.default_rng(6).normal(size=(90, 4)), [30])
    a, b = merge(fit(first), fit(second)), merge(fit(second), fit(first))
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-15)
    np.testing.assert_allclose(a.covariance, b.covariance, atol=1e-14)


def test_agrees_with_torch_fidelity_and_pytorch_fid(golden):
    generated, real = golden["in/features_1"].astype(float), golden["in/features_2"].astype(float)
    np.testing.assert_allclose(fit(generated).covariance, golden["out/sigma_1"], rtol=1e-9, atol=1e-12)
    distance = frechet_distance(fit(generated), fit(real))
    np.testing.assert_allclose(distance, golden["out/fid_torch_fidelity"], rtol=1e-8)
    np.testing.assert_allclose(distance, golden["out/fid_pytorch_fid"], rtol=1e-8)
    few = frechet_distance(fit(generated[:20]), fit(real))
    np.testing.assert_allclose(few, golden["out/fid_rank_deficient"], rtol=1e-5)


def score(metric, samples, **real):
    state = metric.init()
    for stream, images in {**real, "samples": samples}.items():
        for batch in batches(stream, images, size=64):
            if batch.stream in metric.streams:
                state = metric.update(state, batch)
    return metric.compute(state)


@pytest.mark.parametrize("reference", ["test", "train"])
def test_the_metric_is_the_distance_to_its_reference(digits, reference):
    (train, _), (test, _) = digits
    samples, real = test[:200] // 2, {"train": train, "test": test}
    found = score(Frechet(Pixels(), reference, "fid"), samples, **real)
    expected = frechet_distance(fit(Pixels()(samples)), fit(Pixels()(real[reference])))
    assert found == {"fid": pytest.approx(expected, rel=1e-9)}


def test_stored_statistics_replace_a_pass_over_real_images(digits, tmp_path):
    (train, _), (test, _) = digits
    save(tmp_path / "reference.npz", fit(Pixels()(train)))
    metric = Frechet(reference=str(tmp_path / "reference.npz"))
    assert metric.streams == ("samples",)
    expected = score(Frechet(reference="train"), test, train=train)
    assert score(metric, test) == pytest.approx(expected)
    assert load(tmp_path / "reference.npz").n == len(train)


def test_a_missing_or_foreign_file_of_statistics_is_named(tmp_path):
    with pytest.raises(UserError, match=r"reference='.*none.npz'.*got no file"):
        Frechet(reference=str(tmp_path / "none.npz")).init()
    np.savez(tmp_path / "other.npz", mu=np.zeros(3))
    with pytest.raises(UserError, match="mean"):
        load(tmp_path / "other.npz")
