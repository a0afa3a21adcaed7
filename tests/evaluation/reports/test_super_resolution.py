"""Models of super-resolution with known defects, evaluated on crops of photographs."""

import numpy as np
import pytest

from jaxdiff.data.images import to_float
from jaxdiff.evaluation.baselines import Enlarged
from jaxdiff.evaluation.reports.super_resolution import SuperResolutionEvaluation
from tests.evaluation.models import inputs
from tests.evaluation.reports.paired_models import PATCHES, answering, model_of, noisy


@pytest.fixture(scope="module")
def sharp():
    return SuperResolutionEvaluation(factor=4, n=40, features=PATCHES)


def test_a_perfect_model_has_distance_zero_and_the_truths_consistency(sharp, small):
    values = sharp(model_of(answering(small, "low_res", small[1]["image"]), small, "low_res")).values
    model = values["samples"][0]
    assert model["frechet"] < 1e-9
    assert model["spectrum"] == 0
    assert model["mean_colour_error"] == 0
    assert model["psnr"] is None
    assert model["consistency"] == values["real"]["consistency"]
    assert 0.1 < model["consistency"] < 0.5  # of rounding to bytes


def test_a_model_that_is_the_baseline_scores_as_the_baseline(sharp, small):
    found = sharp(
        model_of(lambda conditions, *_: Enlarged(4)(conditions["low_res"]), small, "low_res")
    ).values
    model, baseline = found["samples"][0], found["baseline"]
    assert model["baseline_over_frechet"] == 1
    assert all(model[name] == baseline[name] for name in baseline if name != "name")
    assert baseline["name"] == "bicubic"


def test_sharp_noise_has_a_better_spectrum_and_a_worse_psnr_than_blur(sharp, small):
    """The truth with noise has the right details at the wrong positions: a model's fault, not a blur's."""
    train, test = small
    shifted = np.stack([np.roll(image, (1, 1), (0, 1)) for image in test["image"]])
    values = sharp(model_of(answering(small, "low_res", shifted), small, "low_res")).values
    model, blur = values["samples"][0], values["baseline"]
    assert model["baseline_over_frechet"] > 5
    assert model["spectrum"] < 0.1 * blur["spectrum"]
    assert model["psnr"] < blur["psnr"]
    assert len(train["image"]) == values["conditions"]["train_images"]


def test_a_colour_shift_differs_from_a_loss_of_detail(sharp, small):
    images = small[1]["image"] // 2 + 60
    examples = small[0], {**small[1], "image": images}
    values = sharp(model_of(answering(examples, "low_res", images + 3), examples, "low_res")).values
    model = values["samples"][0]
    assert model["mean_colour_error"] == pytest.approx(3)
    assert model["spectrum"] < 1e-9
    assert model["frechet"] == pytest.approx(48 * (3 / 255) ** 2, rel=1e-4)


def test_guidances_and_diversity(small):
    """Noise of a std that is the guidance: the std between samples of one input, and more of it a larger distance."""
    middle = small[1]["image"] // 2 + 60
    examples = small[0], {**small[1], "image": middle}
    truth = answering(examples, "low_res", middle)
    evaluation = SuperResolutionEvaluation(
        n=20, samples_per_input=8, guidances=(6.0,), features=PATCHES, seed=3
    )

    def generate(conditions, seed, guidance):
        return noisy(truth(conditions, seed, guidance), seed, 2 * guidance)

    found = evaluation(model_of(generate, examples, "low_res"))
    one, six = found.values["samples"]
    assert (one["guidance"], six["guidance"]) == (1, 6)
    for row in (one, six):
        assert row["diversity"] == pytest.approx(2 * row["guidance"], rel=0.05)
    assert six["frechet"] > 10 * one["frechet"]
    assert found.table[0] == ("", "real", "bicubic", "guidance 1", "guidance 6")


@pytest.mark.slow
def test_every_condition_of_the_model_comes_from_the_test_examples(small):
    seen = []

    def generate(conditions, seed, guidance):
        seen.append((conditions, seed, guidance))
        return Enlarged(4)(conditions["low_res"])

    model = inputs(generate, ("label", "low_res"), *small, guidance=2.5)
    SuperResolutionEvaluation(n=7, seed=11, samples_per_input=2)(model)
    assert [(seed, guidance) for _, seed, guidance in seen] == [(11, 2.5), (12, 2.5)]
    chosen = np.linspace(0, 59, 7).round().astype(int)
    for name in ("label", "low_res"):
        np.testing.assert_array_equal(seen[0][0][name], small[1][name][chosen])
    assert set(seen[0][0]["label"]) == {0, 1}


def test_floats_are_the_same_condition_as_bytes(sharp, small):
    floats = tuple({**part, "low_res": to_float(part["low_res"])} for part in small)
    truth = small[1]["image"]
    a, b = (sharp(model_of(answering(e, "low_res", truth), e, "low_res")).values for e in (small, floats))
    for row in ("baseline", "real"):
        for name in ("frechet", "spectrum", "consistency"):
            assert a[row][name] == pytest.approx(b[row][name], rel=1e-4)
