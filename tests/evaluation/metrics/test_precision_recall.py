from pathlib import Path

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.precision_recall import PrecisionRecall, manifold_scores
from tests.evaluation.models import batches

GOLDENS = Path(__file__).parents[2] / "goldens" / "metrics_features.npz"


def line(*positions):
    return np.array(positions, float)[:, None]


def test_known_answers_on_a_line():
    # Real balls (k=1): [-1, 1], [0, 2], [1, 5]; generated balls: [0.2, 0.6], [0.4, 0.8], [0.6, 19.4].
    real, generated = line(0, 1, 3), line(0.4, 0.6, 10)
    scores = manifold_scores(real, generated, (1,))[1]
    assert scores.precision == pytest.approx(2 / 3)  # 10 lies in no real ball
    assert scores.density == pytest.approx((2 + 2 + 0) / 3)
    assert scores.coverage == pytest.approx(2 / 3)  # nothing lies within 2 of 3
    assert scores.recall == pytest.approx(2 / 3)  # the outlier's large ball holds 1 and 3


def test_recall_counts_real_points_on_the_generated_manifold():
    real, generated = line(0, 1, 2, 3), line(0.0, 0.1, 0.2)
    assert manifold_scores(real, generated, (1,))[1][:2] == (1.0, 0.25)


def test_one_repeated_image_is_precise_and_recalls_nothing():
    generator = np.random.default_rng(0)
    real = generator.normal(size=(100, 3))
    scores = manifold_scores(real, np.repeat(real[:1] + 1e-6, 100, axis=0), (3,))[3]
    assert (scores.precision, scores.recall) == (1.0, 0.0)
    assert scores.coverage < 0.2


def test_a_set_against_itself_is_perfect():
    points = np.random.default_rng(1).normal(size=(80, 4))
    scores = manifold_scores(points, points, (5,))[5]
    assert (scores.precision, scores.recall, scores.coverage) == (1.0, 1.0, 1.0)
    assert scores.density == pytest.approx((5 + 1) / 5)  # every ball contains its centre and k neighbours


def test_distant_sets_have_zero_precision_and_recall():
    points = np.random.default_rng(2).normal(size=(50, 4))
    assert manifold_scores(points, points + 100, (3,))[3] == (0, 0, 0, 0)


@pytest.mark.parametrize("k", [3, 5])
def test_agrees_with_torch_fidelity(k):
    with np.load(GOLDENS) as golden:
        generated, real = golden["in/features_1"].astype(float), golden["in/features_2"].astype(float)
        expected = golden[f"out/prc_k{k}"][:2]
    found = manifold_scores(real, generated, (k,))[k][:2]
    np.testing.assert_allclose(found, expected, atol=1e-7)  # stored through float32


def test_density_and_coverage_by_their_definition():
    generator = np.random.default_rng(3)
    real, generated, k = generator.normal(size=(40, 2)), generator.normal(size=(60, 2)) + 0.5, 4
    inside = np.zeros((60, 40), bool)
    for i, x in enumerate(real):
        radius = sorted(np.linalg.norm(x - other) for j, other in enumerate(real) if j != i)[k - 1]
        inside[:, i] = [np.linalg.norm(x - y) <= radius for y in generated]
    scores = manifold_scores(real, generated, (k,))[k]
    assert scores.density == pytest.approx(inside.sum() / (k * 60))
    assert scores.coverage == pytest.approx(inside.any(axis=0).mean())


def test_chunks_change_nothing(digits):
    # Distances of digits are full of ties, which rounding would break differently.
    (train, _), (test, _) = digits
    real, generated = test.reshape(297, -1) / 255, train[:400].reshape(400, -1) / 255
    everything = manifold_scores(real, generated, (1, 3, 5), chunk=1000)
    assert manifold_scores(real, generated, (1, 3, 5), chunk=7) == everything


def test_several_numbers_of_neighbours_are_those_of_each_alone():
    generator = np.random.default_rng(4)
    real, generated = generator.normal(size=(40, 2)), generator.normal(size=(30, 2)) * 2 + 1
    together = manifold_scores(real, generated, (1, 2, 4))
    assert together == {k: manifold_scores(real, generated, (k,))[k] for k in (1, 2, 4)}
    assert len({scores.recall for scores in together.values()}) > 1


def test_the_metric_scores_the_features_of_its_reference_and_samples(digits):
    (train, _), (test, _) = digits
    metric = PrecisionRecall(Pixels(), k=7)
    state = metric.init()
    for batch in (*batches("test", test, size=100), *batches("samples", train[:400], size=64)):
        state = metric.update(state, batch)
    values = metric.compute(state)
    expected = manifold_scores(Pixels()(test), Pixels()(train[:400]), (3, 4, 5, 7))
    assert values["by_k"] == {str(k): scores._asdict() for k, scores in expected.items()}
    assert {name: values[name] for name in expected[7]._fields} == expected[7]._asdict()


def test_impossible_settings_are_errors():
    for arguments in ({"k": 0}, {"reference": "validation"}):
        with pytest.raises(UserError, match=f"{next(iter(arguments))}="):
            PrecisionRecall(**arguments)
    metric = PrecisionRecall(k=7)
    state = metric.init()
    for stream, n in (("test", 20), ("samples", 7)):
        for batch in batches(stream, np.zeros((n, 4, 4, 1), np.uint8)):
            state = metric.update(state, batch)
    with pytest.raises(UserError, match="samples=7: expected more than 7"):
        metric.compute(state)
