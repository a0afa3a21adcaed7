"""Models of image-to-image tasks with known defects, evaluated on crops of photographs."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.data.degradations import Grayscale
from jaxdiff.data.images import to_float, to_uint8
from jaxdiff.errors import UserError
from jaxdiff.evaluation.baselines import MeanColour, known
from jaxdiff.evaluation.reports.image_to_image import TranslationEvaluation, derangement
from tests.evaluation.models import inputs
from tests.evaluation.reports.paired_models import PATCHES, TASKS, answering, model_of, noisy


@pytest.fixture(scope="module")
def translation():
    return TranslationEvaluation(TASKS, keep_luma=("colourise",), n=60, features=PATCHES)


def score(evaluation, examples, generate):
    return evaluation(model_of(generate, examples, "source")).values


def test_a_perfect_translation(translation, partial):
    values = score(translation, partial, answering(partial, "source", partial[1]["image"]))
    assert list(values["tasks"]) == ["all", *TASKS]
    for name, column in values["tasks"].items():
        model = column["samples"][0]
        assert max(model["frechet"], model["frechet_generated"]) < 1e-9
        assert model["error"] == model["spectrum"] == 0
        assert model["shuffled_error"] > 30
        assert model["shuffled_over_error"] is None
        assert model["kept"] == (None if name == "colourise" else 1)
        assert column["baseline"]["frechet_generated"] > 0.01
    counts = np.bincount(partial[1]["task"])
    assert [values["tasks"][name]["n"] for name in ("all", *TASKS)] == [60, *counts]


@pytest.mark.slow
def test_hints_of_samples_are_compared_with_the_given_hints(translation, partial):
    evaluation, truth = dataclasses.replace(translation, hints=(Grayscale(), None)), partial[1]["image"]
    columns = score(evaluation, partial, answering(partial, "source", truth))["tasks"]
    assert columns["colourise"]["samples"][0]["hint_error"] < 1e-4
    assert columns["colourise"]["samples"][0]["shuffled_hint_error"] > 20
    for name in ("all", "inpaint"):
        row = columns[name]["samples"][0]
        assert row["hint_error"] is row["shuffled_hint_error"] is None
    darker = score(evaluation, partial, answering(partial, "source", truth // 2))
    assert darker["tasks"]["colourise"]["samples"][0]["hint_error"] > 20


@pytest.mark.slow
def test_shuffling_does_not_matter_to_a_model_that_ignores_its_condition(translation, partial):
    images = noisy(np.full((60, 32, 32, 3), 110), 0, 30)
    for column in score(translation, partial, lambda conditions, *_: images)["tasks"].values():
        model = column["samples"][0]
        assert model["shuffled_error"] == model["error"] > 0
        assert model["shuffled_over_error"] == 1


@pytest.mark.slow
def test_a_model_that_is_the_baseline_scores_as_the_baseline_of_each_task(translation, partial):
    def generate(conditions, seed, guidance):
        source = conditions["source"]
        hint = (source[..., 3] == -1).all(axis=(1, 2))[:, None, None, None]
        tinted, flat = (MeanColour.of([partial[0]["image"]], keep)(source) for keep in (True, False))
        return np.where(hint, tinted, flat)

    for column in score(translation, partial, generate)["tasks"].values():
        model, baseline = column["samples"][0], column["baseline"]
        assert all(model[name] == baseline[name] for name in baseline)
        assert model["baseline_over_frechet"] == model["baseline_over_frechet_generated"] == 1
        assert model["shuffled_over_error"] > 1


@pytest.mark.slow
def test_luma_makes_a_harder_baseline(translation, partial):
    easy = dataclasses.replace(translation, keep_luma=())
    perfect = answering(partial, "source", partial[1]["image"])
    hard, flat = (score(evaluation, partial, perfect)["tasks"] for evaluation in (translation, easy))
    assert hard["colourise"]["baseline"]["error"] < 0.7 * flat["colourise"]["baseline"]["error"]
    assert hard["colourise"]["baseline"]["spectrum"] < 0.01 < flat["colourise"]["baseline"]["spectrum"]
    assert hard["inpaint"]["baseline"] == flat["inpaint"]["baseline"]


@pytest.mark.slow
def test_one_changed_known_pixel_appears_in_the_table(translation, partial):
    images, task = partial[1]["image"].copy(), partial[1]["task"]
    image = np.flatnonzero(task == 1)[3]
    opaque = known(partial[1]["source"])
    y, x = np.argwhere(opaque[image])[17]
    images[image, y, x, 1] += 1 if images[image, y, x, 1] < 255 else -1
    found = translation(model_of(answering(partial, "source", images), partial, "source"))
    model = found.values["tasks"]["inpaint"]["samples"][0]
    assert model["kept"] == pytest.approx(1 - 1 / opaque.sum(), abs=1e-12)
    assert model["error"] == 0  # of the other pixels
    kept = next(row for row in found.table if row[0].startswith("known pixels kept"))
    assert kept[1] != "1"
    assert kept[2] == "-"


@pytest.mark.slow
def test_errors_are_over_the_generated_pixels(translation, partial):
    opaque = known(partial[1]["source"])[..., None]
    images = partial[1]["image"] // 2 + 60
    examples = partial[0], {**partial[1], "image": images}
    for changed, error in (
        (np.where(opaque, images, images + 5), 5),
        (np.where(opaque, images + 5, images), 0),
    ):
        values = score(translation, examples, answering(examples, "source", changed))
        assert values["tasks"]["inpaint"]["samples"][0]["error"] == pytest.approx(error)
        assert values["tasks"]["all"]["samples"][0]["error"] == pytest.approx(error)


@pytest.mark.slow
def test_the_order_of_test_examples_does_not_matter(translation, partial):
    order = np.random.default_rng(0).permutation(60)
    mixed = partial[0], {name: values[order] for name, values in partial[1].items()}
    blurred = to_uint8(to_float(partial[1]["image"]) * 0.9)
    answer = answering(partial, "source", blurred)
    a, b = (score(translation, examples, answer)["tasks"] for examples in (partial, mixed))
    for name in a:
        for key in ("frechet", "frechet_generated", "spectrum", "error"):
            assert a[name]["samples"][0][key] == pytest.approx(b[name]["samples"][0][key], rel=1e-6)
            assert a[name]["baseline"][key] == pytest.approx(b[name]["baseline"][key], rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffling_gives_each_image_another_of_its_task(seed):
    groups = np.array([0, 2, 0, 0, 2, 2, 2, 0, 0])
    others = derangement(groups, seed)
    assert (others != np.arange(9)).all()
    assert sorted(others) == list(range(9))
    np.testing.assert_array_equal(groups[others], groups)
    with pytest.raises(UserError, match="task 1"):
        derangement(np.array([0, 0, 1]), seed)


@pytest.mark.slow
def test_all_conditions_are_shuffled_together(partial):
    seen = []

    def generate(conditions, seed, guidance):
        seen.append(conditions)
        return np.zeros((len(conditions["source"]), 32, 32, 3), np.uint8)

    TranslationEvaluation(TASKS, n=20)(inputs(generate, ("source", "task"), *partial))
    right, wrong = seen
    np.testing.assert_array_equal(right["task"], wrong["task"])
    position = {given.tobytes(): i for i, given in enumerate(right["source"])}
    moved = np.array([position[given.tobytes()] for given in wrong["source"]])
    assert (moved != np.arange(20)).all()


@pytest.mark.slow
def test_one_task_needs_no_field(partial):
    examples = tuple(
        {name: values[part["task"] == 1] for name, values in part.items() if name != "task"}
        for part in partial
    )
    evaluation = TranslationEvaluation(("inpaint",), task_field=None, n=10)
    values = score(evaluation, examples, answering(examples, "source", examples[1]["image"]))
    assert list(values["tasks"]) == ["all", "inpaint"]
