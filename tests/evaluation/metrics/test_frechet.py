import json
from pathlib import Path

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.frechet import Frechet, distance_of_rows, frechet_distance
from jaxdiff.evaluation.metrics.moments import Gaussian, fit
from jaxdiff.evaluation.metrics.reference_files import load, save
from tests.evaluation.models import score

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
    generator = np.random.default_rng(2)
    a = fit(generator.normal(size=(200, 20)) @ generator.normal(size=(20, 20)))
    b = fit(generator.normal(size=(300, 20)) @ generator.normal(size=(20, 20)) + 1.0)
    np.testing.assert_allclose(frechet_distance(a, b), reference_of_scipy(a, b), rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-12)


@pytest.mark.parametrize("n", [5, 200])
def test_distance_to_itself_is_zero_also_when_the_covariance_is_singular(n):
    a = fit(np.random.default_rng(3).normal(size=(n, 30)) * 100)
    assert 0 <= frechet_distance(a, a) < 1e-8


def test_singular_covariances_have_a_closed_form():
    along_x, along_y = np.diag([4.0, 0, 0]), np.diag([0, 9.0, 0])
    a, b = (Gaussian(np.zeros(3), covariance, 10) for covariance in (along_x, along_y))
    np.testing.assert_allclose(frechet_distance(a, b), 4 + 9, rtol=1e-14)


def test_singular_covariances_in_any_basis_have_the_closed_form():
    """The roots of eigenvalues that are rounding errors would add 1e-8 of each other direction."""
    generator, d = np.random.default_rng(7), 40
    spectra = [np.where(np.arange(d) < rank, generator.uniform(0.5, 2, d), 0) for rank in (3, 15)]
    shared = rotation(d)  # commuting covariances: the distance of their standard deviations
    a, b = (Gaussian(np.zeros(d), shared @ np.diag(s**2) @ shared.T, 10) for s in spectra)
    np.testing.assert_allclose(frechet_distance(a, b), ((spectra[0] - spectra[1]) ** 2).sum(), rtol=1e-10)
    point = Gaussian(np.zeros(d), np.zeros((d, d)), 1)
    np.testing.assert_allclose(frechet_distance(a, point), (spectra[0] ** 2).sum(), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(12, 9), (12, 200), (200, 300)])
def test_the_distance_of_rows_is_that_of_their_moments(sizes):
    generator = np.random.default_rng(8)
    a, b = (generator.normal(size=(n, 30)) @ generator.normal(size=(30, 30)) for n in sizes)
    np.testing.assert_allclose(distance_of_rows(a, b), frechet_distance(fit(a), fit(b)), rtol=1e-10)


def reference_of_scipy(a, b):
    import scipy.linalg

    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    shift = a.mean - b.mean
    return shift @ shift + np.trace(a.covariance + b.covariance) - 2 * np.trace(root).real


def test_agrees_with_scipy_where_the_covariance_has_no_full_rank():
    generator = np.random.default_rng(9)
    few, many = generator.normal(size=(20, 48)), generator.normal(size=(600, 48)) * 1.5 + 1
    expected = reference_of_scipy(fit(few), fit(many))
    np.testing.assert_allclose(frechet_distance(fit(few), fit(many)), expected, rtol=1e-8)


@pytest.mark.slow
def test_agrees_with_scipy_at_the_size_of_inception_features():
    generator = np.random.default_rng(10)
    factor = np.exp(-np.arange(2048) / 400)  # a falling spectrum, as that of features
    a, b = (fit(generator.normal(size=(3000, 2048)) * factor + shift) for shift in (0, 0.1))
    np.testing.assert_allclose(frechet_distance(a, b), reference_of_scipy(a, b), rtol=1e-8)


def test_agrees_with_torch_fidelity_and_pytorch_fid(golden):
    generated, real = golden["in/features_1"].astype(float), golden["in/features_2"].astype(float)
    np.testing.assert_allclose(fit(generated).covariance, golden["out/sigma_1"], rtol=1e-9, atol=1e-12)
    distance = frechet_distance(fit(generated), fit(real))
    np.testing.assert_allclose(distance, golden["out/fid_torch_fidelity"], rtol=1e-8)
    np.testing.assert_allclose(distance, golden["out/fid_pytorch_fid"], rtol=1e-8)
    few = frechet_distance(fit(generated[:20]), fit(real))
    np.testing.assert_allclose(few, golden["out/fid_rank_deficient"], rtol=1e-5)


@pytest.mark.parametrize("reference", ["test", "train"])
def test_the_metric_is_the_distance_to_its_reference(digits, reference):
    (train, _), (test, _) = digits
    samples, real = test[:200] // 2, {"train": train, "test": test}
    found = score(Frechet(Pixels(), reference, "fid_like"), samples, **real)
    expected = frechet_distance(fit(Pixels()(samples)), fit(Pixels()(real[reference])))
    numbers = {"samples": 200, "reference": len(real[reference])}
    assert found == {"fid_like": pytest.approx(expected, rel=1e-9), "fid_like_n": numbers}


def test_stored_statistics_replace_a_pass_over_real_images(digits, tmp_path):
    (train, _), (test, _) = digits
    save(tmp_path / "reference.npz", fit(Pixels()(train)), {"features": Pixels().name})
    metric = Frechet(reference=str(tmp_path / "reference.npz"))
    assert metric.streams == ("samples",)
    expected = score(Frechet(reference="train"), test, train=train)
    found = score(metric, test)
    assert found["frechet"] == pytest.approx(expected["frechet"])
    assert found["frechet_n"] == expected["frechet_n"]
    assert metric.settings()["reference"] == load(tmp_path / "reference.npz").hash
    assert "1500 in the reference" in metric.notes(found)[0]


def test_statistics_of_vectors_of_another_length_are_refused(digits, tmp_path):
    save(tmp_path / "other.npz", fit(np.random.default_rng(0).normal(size=(20, 5))), {})
    with pytest.raises(UserError, match=r"reference='.*other.npz': expected .* 64 numbers.*got 5 numbers"):
        score(Frechet(reference=str(tmp_path / "other.npz")), digits[1][0])


def test_the_standard_error_is_the_deviation_over_new_samples(digits):
    """Of Gaussian pixels: the bootstrap of one sample knows how much another one would differ."""
    generator = np.random.default_rng(0)
    real = generator.normal(128, 20, (2000, 2, 2, 1)).astype(np.uint8)

    def values(resamples):
        samples = generator.normal(140, 20, (200, 2, 2, 1)).astype(np.uint8)
        return score(Frechet(resamples=resamples), samples, test=real)

    distances = [values(0)["frechet"] for _ in range(60)]
    assert values(100)["frechet_error"] == pytest.approx(np.std(distances), rel=0.4)
    with pytest.raises(UserError, match="resamples=1"):
        Frechet(resamples=1)


def test_a_covariance_with_a_negative_eigenvalue_is_refused():
    """Each pair of these three could be so correlated, and not all of them: 1 - 2 x 0.9 is an eigenvalue."""
    possible = Gaussian(np.zeros(3), np.eye(3), 10)
    broken = possible._replace(covariance=1.9 * np.eye(3) - 0.9)
    for pair in ((possible, broken), (broken, possible)):
        with pytest.raises(
            UserError, match=r"covariance='eigenvalue -0\.8': expected a covariance without negative"
        ):
            frechet_distance(*pair)
