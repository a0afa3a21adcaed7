"""KID and CMMD: stored values of torch-fidelity, the definition by loops, and what unbiased means."""

from pathlib import Path

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.cmmd import Cmmd, cmmd
from jaxdiff.evaluation.metrics.kid import Kid, kid_of_subsets
from jaxdiff.evaluation.metrics.mmd import gaussian, polynomial, squared_mmd
from tests.evaluation.models import Space, score

GOLDENS = Path(__file__).parents[2] / "goldens" / "metrics_features.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS) as file:
        return {name: file[name] for name in file.files if name != "meta"}


def test_kid_agrees_with_torch_fidelity(golden):
    samples, real = (golden[f"in/features_{i}"].astype(float) for i in (1, 2))
    assert squared_mmd(samples, real, polynomial) == pytest.approx(golden["out/kid_full"], abs=1e-10)
    rows = zip(golden["in/kid_subset_idx_1"], golden["in/kid_subset_idx_2"], strict=True)
    found = [squared_mmd(samples[i], real[j], polynomial) for i, j in rows]
    np.testing.assert_allclose(found, golden["out/kid_subsets"], rtol=0, atol=1e-10)


def by_loops(a, b, kernel, unbiased):
    def mean(x, y, pairs):
        return np.mean([kernel(x[i], y[j]) for i in range(len(x)) for j in range(len(y)) if pairs or i != j])

    return mean(a, a, not unbiased) + mean(b, b, not unbiased) - 2 * mean(a, b, True)


@pytest.mark.parametrize("unbiased", [True, False])
def test_both_estimates_are_the_definition_in_chunks_of_any_size(unbiased):
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(11, 3)), generator.normal(size=(8, 3)) + 0.5
    kernels = {polynomial: lambda x, y: (x @ y / 3 + 1) ** 3,
               gaussian(1.5): lambda x, y: np.exp(-((x - y) @ (x - y)) / (2 * 1.5**2))}  # fmt: skip
    for ours, definition in kernels.items():
        expected = by_loops(a, b, definition, unbiased)
        for chunk in (3, 100):
            assert squared_mmd(a, b, ours, unbiased, chunk) == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_kid_of_one_distribution_is_zero_on_average():
    generator = np.random.default_rng(2)
    values = [squared_mmd(*generator.normal(size=(2, 30, 4)), polynomial) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0 < max(values)


def test_the_metric_averages_subsets_and_states_their_size():
    generator = np.random.default_rng(3)
    samples, real = (generator.integers(0, 256, (n, 4, 4, 1)).astype(np.uint8) for n in (60, 50))
    found = score(Kid(subsets=7, subset_size=40, seed=5), samples, test=real)["kid"]
    subsets = kid_of_subsets(Pixels()(samples), Pixels()(real), 7, 40, 5)
    assert len(set(subsets)) == 7
    assert (found["value"], found["deviation"]) == (subsets.mean(), subsets.std())
    assert found["of_all"] == squared_mmd(Pixels()(samples), Pixels()(real), polynomial)
    assert found["n"] == {"samples": 60, "reference": 50}
    assert score(Kid(subsets=1), samples, test=real)["kid"]["subset_size"] == 50  # not 1000


def test_subsets_are_drawn_without_replacement():
    samples, real = np.random.default_rng(6).normal(size=(2, 25, 3))
    whole = squared_mmd(samples, real, polynomial)
    np.testing.assert_allclose(kid_of_subsets(samples, real, 3, 25), whole, rtol=1e-12)


def test_the_name_kid_belongs_to_inception_features():
    assert Kid().table()[0].label == "kernel distance to test"
    assert Kid(Space("Inception-v3 (FID)")).table()[0].label == "KID to test"


def test_cmmd_is_the_published_formula_on_unit_vectors():
    generator = np.random.default_rng(4)
    a, b = generator.normal(size=(12, 5)) * 7, generator.normal(size=(9, 5)) + 1
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b)]

    def kernel(x, y):
        return np.exp(-((x - y) @ (x - y)) / 200)

    assert cmmd(a, b) == pytest.approx(1000 * by_loops(*units, kernel, False), rel=1e-9)
    assert cmmd(a, b, unbiased=True) == pytest.approx(1000 * by_loops(*units, kernel, True), rel=1e-9)
    assert cmmd(3 * a, b) == pytest.approx(cmmd(a, b))


def test_cmmd_is_refused_outside_clip():
    with pytest.raises(UserError, match=r"features='pixels in \[0, 1\]': expected image embeddings of CLIP"):
        Cmmd()
    generator = np.random.default_rng(5)
    samples, real = (generator.integers(0, 256, (n, 4, 4, 1)).astype(np.uint8) for n in (20, 30))
    space = Space("CLIP image embeddings")
    found = score(Cmmd(space), samples, test=real)["cmmd"]
    assert found["value"] == cmmd(space(samples), space(real))
    assert found["n"] == {"samples": 20, "reference": 30}
