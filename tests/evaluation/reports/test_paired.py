"""Models with known defects, evaluated on crops of photographs."""

import dataclasses
import json

import numpy as np
import pytest

from jaxdiff import config
from jaxdiff.data.conditions import Choice, Degrade
from jaxdiff.data.degradations import Downsample, Grayscale
from jaxdiff.data.images import to_float, to_uint8
from jaxdiff.data.masks import BoxMask, Hint, Masked
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.errors import UserError
from jaxdiff.evaluation.baselines import Enlarged, MeanColour, known
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.metric import Batch
from jaxdiff.evaluation.protocols import Evaluator
from jaxdiff.evaluation.reports import paired
from jaxdiff.evaluation.reports.files import write
from jaxdiff.evaluation.reports.image_to_image import TranslationEvaluation, derangement
from jaxdiff.evaluation.reports.super_resolution import SuperResolutionEvaluation
from tests.evaluation.models import inputs

TASKS = ("colourise", "inpaint")
LOSSES = {"log_snr": [-2.0, 0.0, 2.0], "train": [1.0, 0.5, 0.1], "test": [1.1, 0.6, 0.2]}
PATCHES = Patches(4, 2)


def crops(split, *conditions):
    return Pipeline(Tfds("photos/32", split), conditions=conditions).all()


def rows(examples, n):
    return {name: values[paired.evenly(np.zeros(len(values), int), n)] for name, values in examples.items()}


@pytest.fixture(scope="module")
def small():
    """Train and test examples of super-resolution by 4."""
    condition = Degrade("low_res", Downsample(4))
    return crops("train[:3%]", condition), rows(crops("test", condition), 60)


@pytest.fixture(scope="module")
def partial():
    """Train and test examples of two tasks."""
    condition = Choice("source", (Hint(Grayscale()), Masked(BoxMask(), fill=0.0)))
    return crops("train[:3%]", condition), rows(crops("test", condition), 60)


def model_of(generate, examples, condition, **settings):
    """A model with only this condition."""
    return inputs(generate, (condition,), *examples, **settings)


def answering(examples, condition, images):
    """Returns these images for the conditions of the test examples, in any order."""
    known = {given.tobytes(): image for given, image in zip(examples[1][condition], images, strict=True)}
    return lambda conditions, seed, guidance: np.stack(
        [known[given.tobytes()] for given in conditions[condition]]
    )


def noisy(images, seed, std):
    noise = np.random.default_rng(seed).normal(0, std, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


# Super-resolution


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


def test_the_first_sample_of_an_input_is_scored(small, partial):
    for evaluation, examples, condition in (
        (SuperResolutionEvaluation(n=8, samples_per_input=2, seed=5), small, "low_res"),
        (TranslationEvaluation(TASKS, n=8, samples_per_input=2, seed=5), partial, "source"),
    ):
        truth = answering(examples, condition, examples[1]["image"])

        def generate(conditions, seed, guidance, truth=truth):
            return truth(conditions, seed, guidance) // (1 if seed == 5 else 2)

        values = evaluation(model_of(generate, examples, condition)).values
        column = values["tasks"]["all"] if "tasks" in values else values
        assert column["samples"][0]["frechet"] < 1e-9
        assert column["samples"][0]["diversity"] > 10


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


# Image to image


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


def test_shuffling_does_not_matter_to_a_model_that_ignores_its_condition(translation, partial):
    images = noisy(np.full((60, 32, 32, 3), 110), 0, 30)
    for column in score(translation, partial, lambda conditions, *_: images)["tasks"].values():
        model = column["samples"][0]
        assert model["shuffled_error"] == model["error"] > 0
        assert model["shuffled_over_error"] == 1


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


def test_luma_makes_a_harder_baseline(translation, partial):
    easy = dataclasses.replace(translation, keep_luma=())
    perfect = answering(partial, "source", partial[1]["image"])
    hard, flat = (score(evaluation, partial, perfect)["tasks"] for evaluation in (translation, easy))
    assert hard["colourise"]["baseline"]["error"] < 0.7 * flat["colourise"]["baseline"]["error"]
    assert hard["colourise"]["baseline"]["spectrum"] < 0.01 < flat["colourise"]["baseline"]["spectrum"]
    assert hard["inpaint"]["baseline"] == flat["inpaint"]["baseline"]


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


def test_one_task_needs_no_field(partial):
    examples = tuple(
        {name: values[part["task"] == 1] for name, values in part.items() if name != "task"}
        for part in partial
    )
    evaluation = TranslationEvaluation(("inpaint",), task_field=None, n=10)
    values = score(evaluation, examples, answering(examples, "source", examples[1]["image"]))
    assert list(values["tasks"]) == ["all", "inpaint"]


def test_chosen_images_are_spread_over_all_and_over_each_task():
    np.testing.assert_array_equal(paired.evenly(np.zeros(5, int), 9), np.arange(5))
    np.testing.assert_array_equal(paired.evenly(np.zeros(9, int), 3), [0, 4, 8])
    task = np.arange(120) % 4  # a spread by 4 rows would see one task
    chosen = paired.evenly(task, 30)
    assert len(chosen) == 30
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(task[chosen]).min() >= 7
    for t in range(4):
        rows = chosen[task[chosen] == t]
        assert rows.min() < 16
        assert rows.max() >= 104


# Reports


@pytest.fixture(scope="module")
def reports(small, partial):
    settings = {"settings": {"sampler": "Heun()", "steps": 12}, "noise_losses": LOSSES}
    sharp = SuperResolutionEvaluation(n=12, samples_per_input=2, guidances=(2.0,))
    both = TranslationEvaluation(TASKS, n=12, samples_per_input=2, guidances=(2.0,))
    return [
        sharp(model_of(answering(small, "low_res", small[1]["image"]), small, "low_res", **settings)),
        both(model_of(answering(partial, "source", partial[1]["image"]), partial, "source", **settings)),
    ]


def test_reports_can_be_stored_and_state_their_conditions(reports, tmp_path):
    for found in reports:
        write(found, str(tmp_path))
        stored = json.loads((tmp_path / "evaluation.json").read_text())
        assert (
            stored["conditions"] | {"n": 12, "seed": 0, "sampler": "Heun()", "steps": 12}
            == stored["conditions"]
        )
        assert "8 x 8" in stored["conditions"]["features"]
        assert stored["noise_losses"] == LOSSES
        assert len({len(row) for row in found.table}) == 1
        assert "sampler Heun()" in str(found)
        assert found.scalars
        assert all(np.isfinite(value) for value in found.scalars.values())


def shows(figure, image, times):
    """Whether a figure contains the image, with its pixels enlarged to squares."""
    large = image.repeat(times, axis=0).repeat(times, axis=1)
    height, width = large.shape[:2]
    lines = ((y, line.tobytes().find(large[0].tobytes()) // 3) for y, line in enumerate(figure))
    return any((figure[y : y + height, x : x + width] == large).all() for y, x in lines if x >= 0)


def test_figures_show_conditions_samples_and_truths_pixel_by_pixel(reports, small, partial):
    sharp, both = reports
    first = int(partial[1]["task"].argmin())  # of the first task
    assert shows(sharp.figure, small[1]["image"][0], 4)
    assert shows(sharp.figure, small[1]["low_res"][0], 16)
    assert shows(sharp.figure, Enlarged(4)(small[1]["low_res"][:1])[0], 4)
    assert shows(both.figure, partial[1]["image"][first], 4)
    assert shows(both.figure, to_uint8(partial[1]["source"][first : first + 1, ..., :3])[0], 4)


def test_further_samples_of_an_input_are_shown_after_the_first():
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 4, 3)).astype(np.uint8)
    shown = paired.Shown(np.array([4, 1]))

    def batches(k):
        for part in (slice(0, 2), slice(2, 5)):
            rows = np.arange(5)[part]
            yield Batch("samples", images[0, part], {}, 0 * rows, rows, repeats=images[:k, part])

    for title, k in (("guidance 1", 1), ("guidance 2.5", 9)):
        assert sum(len(batch.images) for batch in shown.watch(title, batches(k))) == 5
    assert list(shown.columns) == ["guidance 1", "guidance 2.5 #1", "guidance 2.5 #2", "guidance 2.5 #3"]
    np.testing.assert_array_equal(shown.columns["guidance 2.5 #3"], images[2, [4, 1]])


def test_batches_of_any_size_are_the_same_evaluation(small, partial):
    """Image i of a seed is generated in any batch."""
    for evaluation, examples, condition in (
        (SuperResolutionEvaluation(n=21, samples_per_input=2, features=PATCHES), small, "low_res"),
        (TranslationEvaluation(TASKS, n=21, samples_per_input=2, features=PATCHES), partial, "source"),
    ):
        answer = answering(examples, condition, examples[1]["image"] // 2)

        def generate(conditions, seed, guidance, first, answer=answer):
            return answer(conditions, seed, guidance) + np.uint8(seed)

        large = model_of(answer, examples, condition)
        large = dataclasses.replace(large, generate=generate)
        expected, found = (evaluation(dataclasses.replace(large, batch_size=size)) for size in (1000, 8))
        assert flat(found.values) == pytest.approx(flat(expected.values), rel=1e-6, abs=1e-9)


def flat(values, path=""):
    items = values.items() if isinstance(values, dict) else enumerate(values)
    found = {}
    for key, value in items:
        if isinstance(value, dict | list):
            found |= flat(value, f"{path}.{key}")
        elif isinstance(value, float):
            found[f"{path}.{key}"] = value
    return found


def test_evaluations_are_config_blocks():
    for evaluation in (
        config.spec(SuperResolutionEvaluation, factor=2, features=config.spec(Patches, size=4, stride=2)),
        config.spec(TranslationEvaluation, tasks=TASKS, keep_luma=("colourise",)),
    ):
        assert isinstance(config.build(evaluation), Evaluator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SuperResolutionEvaluation(factor=1), "factor=1"),
        (lambda: SuperResolutionEvaluation(n=1), "n=1"),
        (lambda: SuperResolutionEvaluation(samples_per_input=0), "samples_per_input=0"),
        (lambda: TranslationEvaluation(()), "tasks="),
        (lambda: TranslationEvaluation(("a", "a")), "tasks="),
        (lambda: TranslationEvaluation(("a", "all")), "tasks=.*'all'"),
        (lambda: TranslationEvaluation(("a", "b"), task_field=None), "task_field=None"),
        (lambda: TranslationEvaluation(("a",), keep_luma=("b",)), "keep_luma="),
        (lambda: TranslationEvaluation(("a",), hints=(None, None)), "hints="),
        (lambda: TranslationEvaluation(("a",), n=1), "n=1"),
        (lambda: TranslationEvaluation(("a",), samples_per_input=0), "samples_per_input=0"),
    ],
)
def test_invalid_settings_are_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_settings_that_do_not_fit_the_data_are_errors(small, partial):
    def black(conditions, seed, guidance):
        return np.zeros((20, 32, 32, 3), np.uint8)

    def evaluated(evaluation, examples, condition, generate=black):
        return evaluation(model_of(generate, examples, condition))

    sharp, both = SuperResolutionEvaluation(n=20), TranslationEvaluation(TASKS, n=20)
    with pytest.raises(UserError, match=r"condition='other'.*low_res"):
        evaluated(dataclasses.replace(sharp, condition="other"), small, "low_res")
    with pytest.raises(UserError, match=r"source=.*test examples"):
        evaluated(dataclasses.replace(sharp, condition="source"), small, "source")
    with pytest.raises(UserError, match="factor=2"):
        evaluated(dataclasses.replace(sharp, factor=2), small, "low_res")
    with pytest.raises(UserError, match="task_field='kind'"):
        evaluated(dataclasses.replace(both, task_field="kind"), partial, "source")
    with pytest.raises(UserError, match=r"tasks=.*\[0, 1\]"):
        evaluated(dataclasses.replace(both, tasks=("colourise",)), partial, "source")
    opaque = partial[0], {**partial[1], "source": np.ones_like(partial[1]["source"])}
    with pytest.raises(UserError, match="nothing is to be generated"):
        evaluated(both, opaque, "source")
    with pytest.raises(UserError, match="one channel more"):
        evaluated(dataclasses.replace(both, condition="image"), partial, "image")
    with pytest.raises(ValueError, match="expected uint8"):
        evaluated(sharp, small, "low_res", lambda *_: np.zeros((20, 32, 32, 3), np.float32))
