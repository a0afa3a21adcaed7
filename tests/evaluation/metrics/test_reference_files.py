"""Files of statistics: written and read, those of other libraries read, other rules and damage refused by name."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.fid import Fid, SpatialFid
from jaxdiff.evaluation.metrics.frechet import Frechet
from jaxdiff.evaluation.metrics.moments import fit
from jaxdiff.evaluation.metrics.reference_files import load, save
from jaxdiff.evaluation.references import made
from tests.evaluation.models import Space

SPACE = Space("Inception-v3 (FID)", profile="clean-fid")


@pytest.fixture
def statistics():
    return fit(np.random.default_rng(0).normal(size=(30, 4)))


@pytest.fixture
def file(statistics, tmp_path):
    save(tmp_path / "ours.npz", statistics, made(SPACE, {"name": "digits", "length": 30}))
    return tmp_path / "ours.npz"


def test_what_is_written_is_read_with_how_it_was_made(file, statistics):
    found = load(file)
    np.testing.assert_array_equal(found.gaussian.mean, statistics.mean)
    np.testing.assert_array_equal(found.gaussian.covariance, statistics.covariance)
    assert found.gaussian.n == 30
    assert found.made["profile"] == "clean-fid"
    assert found.made["data"] == {"name": "digits", "length": 30}
    assert found.of(SPACE) is found


def test_pytorch_fid_reads_our_file(file, statistics):
    """As its ``compute_statistics_of_path`` does: the arrays mu and sigma."""
    with np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["mu"][:], statistics.mean)
        np.testing.assert_array_equal(arrays["sigma"][:], statistics.covariance)


@pytest.mark.parametrize(
    "names", [("mu", "sigma"), ("mean", "covariance")], ids=["EDM, pytorch-fid", "jaxdiff 0.1"]
)
def test_files_of_others_are_read(statistics, tmp_path, names):
    arrays = dict(zip(names, statistics[:2], strict=True))
    np.savez(tmp_path / "other.npz", **arrays)
    found = load(tmp_path / "other.npz")
    np.testing.assert_array_equal(found.gaussian.covariance, statistics.covariance)
    assert (found.gaussian.n, dict(found.made)) == (0, {})
    metric = Frechet(Space(), str(tmp_path / "other.npz"))
    notes = metric.notes({"frechet_n": {"samples": 9, "reference": 0}})
    assert "unknown in the reference" in notes[0]
    assert "does not state its features and profile" in notes[1]


def test_adm_files_have_statistics_of_both_spaces(statistics, tmp_path):
    spatial = fit(np.random.default_rng(1).normal(size=(30, 3)))
    np.savez(tmp_path / "adm.npz", mu=statistics.mean, sigma=statistics.covariance, mu_s=spatial.mean,
             sigma_s=spatial.covariance, arr_0=np.zeros((2, 8, 8, 3), np.uint8))  # fmt: skip
    path = str(tmp_path / "adm.npz")
    np.testing.assert_array_equal(Fid(SPACE, path).init().reference.mean, statistics.mean)
    np.testing.assert_array_equal(
        SpatialFid(Space("Inception-v3 spatial (sFID)"), path).init().reference.mean, spatial.mean
    )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space("Inception-v3 (FID)", profile="adm-tf"), "whose profile is 'adm-tf'.*got 'clean-fid'"),
        (Space("DINOv2", profile="clean-fid"), "whose features is 'DINOv2'.*got 'Inception-v3 .FID.'"),
        (Space("Inception-v3 (FID)", "clean-fid", "sha256:f"), "whose features_hash is 'sha256:f'"),
        (Pixels(), "whose features is 'pixels"),
    ],
)
def test_statistics_made_by_other_rules_are_refused(file, space, message):
    with pytest.raises(UserError, match=message):
        Frechet(space, str(file)).init()


def test_the_hash_is_that_of_the_statistics_and_not_of_the_file(file, statistics, tmp_path):
    np.savez_compressed(tmp_path / "again.npz", mu=statistics.mean, sigma=statistics.covariance)
    assert load(tmp_path / "again.npz").hash == load(file).hash
    np.savez(tmp_path / "other.npz", mu=statistics.mean + 1e-12, sigma=statistics.covariance)
    assert load(tmp_path / "other.npz").hash != load(file).hash


BROKEN = {
    "no covariance": ({"mu": np.zeros(3)}, "the arrays mu and sigma, got only"),
    "shape": ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"a covariance \[d, d\], got \(3,\)"),
    "not finite": ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "finite statistics"),
    "complex": ({"mu": np.zeros(2, complex), "sigma": np.eye(2)}, "an intact .npz file, got TypeError"),
    "text": ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "an intact .npz file, got TypeError"),
    "made": ({"mu": np.zeros(2), "sigma": np.eye(2), "made": "[1]"}, "n >= 0, and how it was made"),
    "negative number": ({"mu": np.zeros(2), "sigma": np.eye(2), "n": -5}, "n >= 0, and how it was made"),
    "negative": ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "variances of at least 0"),
    "correlation": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [2, 1]])}, "variances of at least 0"),
    "not symmetric": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [0, 1]])}, "a symmetric covariance"),
}


@pytest.mark.parametrize(("arrays", "message"), BROKEN.values(), ids=BROKEN)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(UserError, match=rf"reference='.*broken.npz': expected .*{message}"):
        load(tmp_path / "broken.npz")


def test_a_missing_or_damaged_file_is_named(file, tmp_path):
    with pytest.raises(UserError, match=r"reference='.*none.npz'.*got no file"):
        Frechet(reference=str(tmp_path / "none.npz")).init()
    np.savez(tmp_path / "made.npz", mu=np.zeros(2), sigma=np.eye(2), made="{")
    with pytest.raises(
        UserError, match=r"reference='.*made.npz': expected an intact .npz file, got JSONDecodeError"
    ):
        load(tmp_path / "made.npz")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"reference='.*ours.npz': expected an intact .npz file"):
        load(file)
