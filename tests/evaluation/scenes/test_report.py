"""Models with known strengths and defects, which the report has to detect."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.errors import UserError
from jaxdiff.evaluation.plots.drawing import TRAIN
from jaxdiff.evaluation.protocols import Evaluator, Report
from jaxdiff.evaluation.scenes.classifier import (
    ATTRIBUTES,
    FIELDS,
    SceneClassifier,
    compare,
    in_reading_order,
)
from jaxdiff.evaluation.scenes.figure import CORRECT, WRONG
from jaxdiff.evaluation.scenes.metrics import wilson
from jaxdiff.evaluation.scenes.report import SceneEvaluation, shuffled
from tests.evaluation.models import inputs

N = 90
LOSSES = {"log_snr": [-5.0, 0.0, 5.0], "train": [1.0, 0.5, 0.1], "test": [1.0, 0.6, 0.2]}


def examples(split):
    data = Pipeline(Tfds("scenes", split, label_key=None, text_key="caption", fields=FIELDS)).all()
    return {**data, "text": ByteTokenizer(80).encode_batch(data["text"].tolist())}


@pytest.fixture(scope="module")
def train():
    return examples("train[:2000]")


@pytest.fixture(scope="module")
def test():
    """Examples whose captions are all different, so that each caption identifies its image."""
    data = examples("test")
    _, first = np.unique(data["text"], axis=0, return_index=True)
    return {name: values[np.sort(first)] for name, values in data.items()}


def painter(data, change=lambda image, guidance: image):
    """A model that returns the image of each caption."""
    known = {text.tobytes(): image for text, image in zip(data["text"], data["image"], strict=True)}
    return lambda given, seed, guidance: np.stack(
        [change(known[text.tobytes()], guidance) for text in given["text"]]
    )


@pytest.fixture(scope="module")
def evaluate(train, test):
    def run(generate, evaluation=None, **changes) -> Report:
        given = {"conditions": ("text",), "guidance": 3.0, "train": train, "test": test}
        return (evaluation or SceneEvaluation(n=N))(inputs(generate, **{**given, **changes}))

    return run


@pytest.fixture(scope="module")
def perfect(evaluate, test):
    return evaluate(painter(test), noise_losses=LOSSES, settings={"sampler": "Ddim()", "steps": 9})


def test_it_is_an_evaluation():
    assert isinstance(SceneEvaluation(), Evaluator)


@pytest.mark.slow
def test_a_perfect_model_matches_real_images(perfect):
    values = perfect.values
    assert values["real"]["correct"]["all"] > 0.9
    assert [row["guidance"] for row in values["samples"]] == [1.0, 3.0]
    for row in values["samples"]:
        for measure in ("correct", "interval", "correct_by_count", "memorization", "spread"):
            assert row[measure] == values["real"][measure]
    assert values["real"]["memorization"]["ratio"] == 1.0
    assert values["real"]["memorization"]["exact_copies"] == 0.0


@pytest.mark.slow
def test_a_perfect_model_is_at_chance_under_other_captions(perfect):
    values = perfect.values
    assert values["shuffled"]["correct"] == values["real_shuffled"]["correct"]
    assert values["shuffled"]["correct"]["all"] == 0.0  # no scene is compared with its own caption
    assert 0.2 < values["shuffled"]["correct"]["count"] < 0.6


@pytest.mark.slow
def test_a_model_that_ignores_captions_is_as_good_under_other_captions(evaluate, train):
    report = evaluate(lambda given, seed, guidance: train["image"][:N])
    assert report.values["samples"][1]["correct"] == report.values["shuffled"]["correct"]
    assert report.values["samples"][1]["correct"]["all"] < 0.1
    assert report.values["samples"][1]["memorization"]["exact_copies"] == 1.0
    assert report.values["samples"][1]["memorization"]["ratio"] == 0.0


@pytest.mark.slow
def test_samples_have_the_requested_guidance(evaluate, test):
    """Correct at 3 alone: elsewhere red, green and blue are exchanged."""
    model = painter(test, lambda image, guidance: image if guidance == 3 else image[..., [1, 2, 0]])
    report = evaluate(model, evaluation=SceneEvaluation(n=N, guidances=(7.0, 3.0)))
    by_guidance = {row["guidance"]: row["correct"] for row in report.values["samples"]}
    assert list(by_guidance) == [1.0, 3.0, 7.0]
    assert by_guidance[3.0] == report.values["real"]["correct"]
    assert by_guidance[1.0]["colours"] < 0.3
    for name in ("count", "relation", "digits"):  # with wrong colours, fewer attributes identify the order
        assert by_guidance[1.0][name] == pytest.approx(by_guidance[3.0][name], abs=0.1)
    assert report.table[0] == ("", "real", "guidance 1", "guidance 3", "guidance 7", "shuffled")


def test_every_condition_is_taken_from_the_test_examples(evaluate, test):
    calls = []

    def generate(given, seed, guidance):
        calls.append((given, seed, guidance))
        return test["image"][:N]

    evaluate(generate, conditions=("text", "count"), guidance=2.0, evaluation=SceneEvaluation(n=N, seed=11))
    assert [(seed, guidance) for _, seed, guidance in calls] == [(11, 1.0), (11, 2.0), (11, 2.0)]
    for given, _, _ in calls[:2]:
        assert set(given) == {"text", "count"}
        np.testing.assert_array_equal(given["text"], test["text"][:N])
        np.testing.assert_array_equal(given["count"], test["count"][:N])
    swapped = calls[2][0]
    assert {row.tobytes() for row in swapped["text"]} == {row.tobytes() for row in test["text"][:N]}
    own = {text.tobytes(): count for text, count in zip(test["text"], test["count"], strict=True)}
    assert [own[text.tobytes()] for text in swapped["text"]] == swapped["count"].tolist()


@pytest.mark.slow
def test_one_good_image_for_each_scene_is_correct_and_without_spread(evaluate, train):
    """A training image for every caption: only the spread and the copies reveal the fault."""
    single = {name: values[train["count"] == 1] for name, values in train.items()}
    data = examples("test")
    known = {text.tobytes() for text in single["text"]}
    chosen = [i for i, text in enumerate(data["text"]) if text.tobytes() in known and data["count"][i] == 1]
    report = evaluate(painter(single), test={name: values[chosen] for name, values in data.items()})
    row = report.values["samples"][1]
    assert row["correct"]["all"] > 0.9
    assert row["spread"] == pytest.approx(0.0, abs=1e-12)
    assert row["memorization"]["exact_copies"] == 1.0
    assert row["memorization"]["ratio"] == 0.0
    assert report.values["real"]["spread"] == 1.0


def test_spread_is_the_variance_over_that_of_real_images(evaluate, test):
    """Halved contrast has a quarter of the variance; every scene is requested twice."""
    twice = {name: values[np.arange(N) // 2] for name, values in test.items()}
    twice["image"] = test["image"][:N]  # of different scenes, but only distances matter here
    shown = test["image"][:N] // 2
    report = evaluate(lambda given, seed, guidance: shown, test=twice)
    assert report.values["samples"][0]["spread"] == pytest.approx(0.25, rel=0.01)


@pytest.mark.slow
def test_the_order_of_examples_does_not_matter(evaluate, perfect, test):
    order = np.random.default_rng(3).permutation(N)
    report = evaluate(painter(test), test={name: values[order] for name, values in test.items()})
    for row, expected in zip(report.values["samples"], perfect.values["samples"], strict=True):
        assert row["correct"] == expected["correct"]
        assert row["correct_by_count"] == expected["correct_by_count"]
        assert row["memorization"] == expected["memorization"]


def test_correct_images_by_their_number_of_digits_add_up(perfect, test):
    row = perfect.values["samples"][1]
    counts = test["count"][:N]
    weights = [float(np.mean(counts == int(count))) for count in row["correct_by_count"]]
    assert list(row["correct_by_count"]) == ["1", "2", "3"]
    assert np.dot(weights, list(row["correct_by_count"].values())) == pytest.approx(row["correct"]["all"])


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 20), (17, 40), (499, 500), (500, 500)])
def test_the_interval_is_wilsons(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_belongs_to_the_headline(perfect):
    row = perfect.values["samples"][1]
    low, high = wilson(round(row["correct"]["all"] * N), N)
    assert (row["interval"]["low"], row["interval"]["high"]) == (low, high)


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_captions_are_of_other_scenes(train, seed):
    single = train["count"] == 1  # of 48 kinds: many are the same
    scenes = {name: train[name][single][:200] for name in FIELDS}
    others = shuffled(scenes, seed)
    assert sorted(others) == list(range(200))
    taken = {name: values[others] for name, values in scenes.items()}
    assert not compare(in_reading_order(scenes), taken)["all"].any()
    assert not np.array_equal(others, shuffled(scenes, seed + 1))


def test_the_same_scene_in_other_words_is_not_another_scene():
    """Four times "a above b", half of them as "b below a", and four others: none may get one of its own kind."""
    digits = np.array([[1, 2, -1], [2, 1, -1]] * 2 + [[i, i, -1] for i in range(4)])
    relation = np.array([3, 4] * 2 + [1] * 4)
    scenes = {
        "digits": digits,
        "colours": np.where(digits < 0, -1, 0),
        "relation": relation,
        "count": np.full(8, 2),
    }
    assert set(shuffled(scenes, 0)[:4]) == {4, 5, 6, 7}
    with pytest.raises(UserError, match="got 4 of the same scene"):
        shuffled({name: values[:7] for name, values in scenes.items()}, 0)


def test_the_same_objects_elsewhere_are_another_scene():
    digits = np.array([[1, 2, -1]] * 4)
    scenes = {"digits": digits, "colours": digits, "relation": np.array([1, 3, 1, 3]), "count": np.full(4, 2)}
    others = shuffled(scenes, 0)
    assert (scenes["relation"][others] != scenes["relation"]).all()


def test_every_value_has_its_conditions_and_is_json(perfect):
    values = json.loads(json.dumps(perfect.values, allow_nan=False))
    for row in (*values["samples"], values["shuffled"], values["real"], values["real_shuffled"]):
        stated = row["conditions"]
        assert stated["n"] == N
        assert stated["seed"] == 0
        assert stated["classifier"] == SceneClassifier().name
        assert stated["sampler"] == "Ddim()"
        assert set(row["correct"]) == {"all", *ATTRIBUTES}
    assert [row["conditions"]["guidance"] for row in values["samples"]] == [1.0, 3.0]
    assert values["shuffled"]["conditions"]["guidance"] == 3.0
    assert values["noise_losses"] == LOSSES


def test_the_table_shows_the_values(perfect):
    columns = perfect.table[0]
    assert columns == ("", "real", "guidance 1", "guidance 3", "shuffled")
    assert all(len(row) == len(columns) for row in perfect.table)
    rows = {row[0]: row[1:] for row in perfect.table}
    shown = [perfect.values["real"], *perfect.values["samples"], perfect.values["shuffled"]]
    assert rows["all attributes correct"] == tuple(f"{column['correct']['all']:.3f}" for column in shown)
    assert rows["colours correct"] == tuple(f"{column['correct']['colours']:.3f}" for column in shown)
    text = " ".join(perfect.caption)
    assert f"{N} captions" in text
    assert SceneClassifier().name in text
    assert "guidance 3" in text
    assert "steps 9" in text


@pytest.mark.slow
def test_positions_are_reported_where_examples_have_boxes(evaluate, perfect, test):
    """Images that are moved, down by two pixels, show other positions and the same attributes."""
    boxes = Pipeline(
        Tfds("scenes", "test", label_key=None, fields=(*FIELDS, "boxes"), text_key="caption")
    ).all()
    _, first = np.unique(ByteTokenizer(80).encode_batch(boxes["text"].tolist()), axis=0, return_index=True)
    known = {**test, "boxes": boxes["boxes"][np.sort(first)]}
    model = painter(test, lambda image, guidance: image if guidance == 3 else np.roll(image, 2, axis=0))
    report = evaluate(model, test=known)
    values, (moved, exact) = report.values, report.values["samples"]
    assert exact["overlap"] == values["real"]["overlap"] > 0.9
    assert 0.3 < moved["overlap"] < 0.75
    assert values["shuffled"]["overlap"] == values["real_shuffled"]["overlap"] < 0.3
    assert "overlap of boxes (IoU)" in [row[0] for row in report.table]
    assert f"overlap {values['real_shuffled']['overlap']:.3f}" in " ".join(report.caption)
    assert "overlap" not in perfect.values["real"]
    assert "overlap of boxes (IoU)" not in [row[0] for row in perfect.table]


def pixels(figure, colour):
    return int((figure == colour).all(axis=-1).sum())


@pytest.mark.slow
def test_the_figure_marks_correct_and_wrong_samples(evaluate, perfect, test):
    """At the recipe's guidance, whose samples are shown, a model is correct; or all but its colours is correct."""
    frame = 102**2 - 96**2  # of a sample
    correct = perfect.figure
    wrong = evaluate(
        painter(test, lambda image, guidance: image[..., [1, 2, 0]] if guidance == 3 else image)
    ).figure
    fraction = perfect.values["samples"][1]["correct"]["all"]
    assert pixels(correct, CORRECT) % frame == 0
    assert pixels(correct, CORRECT) / (24 * frame) == pytest.approx(fraction, abs=0.1)
    assert pixels(wrong, CORRECT) / (24 * frame) < 0.3
    assert pixels(wrong, CORRECT) / frame + pixels(wrong, WRONG) // frame == 24  # and words of that colour
    assert correct.dtype == np.uint8
    assert pixels(correct, TRAIN) > 100  # the curve, where there are losses
    assert pixels(wrong, TRAIN) == 0


@pytest.mark.slow
def test_unsuitable_examples_are_errors(evaluate, test):
    model = painter(test)
    bare = {name: values for name, values in test.items() if name != "digits"}
    with pytest.raises(UserError, match=r"got none of \['digits'\]"):
        evaluate(model, test=bare)
    with pytest.raises(UserError, match="text_field='words'"):
        evaluate(model, evaluation=SceneEvaluation(n=N, text_field="words"))
    with pytest.raises(UserError, match=f"n=5000: expected at most {len(test['image'])}"):
        evaluate(model, evaluation=SceneEvaluation(n=5000))
    with pytest.raises(UserError, match="n=1:"):
        SceneEvaluation(n=1)
    with pytest.raises(ValueError, match="got float64"):
        evaluate(lambda given, seed, guidance: np.zeros(test["image"][:N].shape))
    with pytest.raises(ValueError, match=r"got uint8 \(3, "):
        evaluate(lambda given, seed, guidance: test["image"][:3])
