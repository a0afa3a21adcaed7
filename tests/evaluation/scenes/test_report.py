"""Models whose every virtue and vice is known: the report has to say them."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.errors import UserError
from jaxdiff.evaluation.plots.drawing import TRAIN
from jaxdiff.evaluation.protocols import Evaluation, EvaluationInputs, Report
from jaxdiff.evaluation.scenes.classifier import (
    ATTRIBUTES,
    FIELDS,
    SceneClassifier,
    compare,
    in_reading_order,
)
from jaxdiff.evaluation.scenes.report import RIGHT, WRONG, SceneEvaluation, shuffled, wilson

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
    """Examples whose captions are all different, so that a caption tells which image is its own."""
    data = examples("test")
    _, first = np.unique(data["text"], axis=0, return_index=True)
    return {name: values[np.sort(first)] for name, values in data.items()}


def painter(data, change=lambda image, guidance: image):
    """A model that knows the image of each caption."""
    known = {text.tobytes(): image for text, image in zip(data["text"], data["image"], strict=True)}
    return lambda asked, seed, guidance: np.stack(
        [change(known[text.tobytes()], guidance) for text in asked["text"]]
    )


@pytest.fixture(scope="module")
def evaluate(train, test):
    def run(generate, evaluation=None, **subject) -> Report:
        given = {"conditions": ("text",), "guidance": 3.0, "train": train, "test": test}
        return (evaluation or SceneEvaluation(n=N))(
            EvaluationInputs(generate=generate, **{**given, **subject})
        )

    return run


@pytest.fixture(scope="module")
def perfect(evaluate, test):
    return evaluate(painter(test), noise_losses=LOSSES, settings={"sampler": "Ddim()", "steps": 9})


def test_it_is_an_evaluation():
    assert isinstance(SceneEvaluation(), Evaluation)


def test_a_perfect_model_is_the_yardstick(perfect):
    values = perfect.values
    assert values["real"]["right"]["all"] > 0.9
    assert [row["guidance"] for row in values["samples"]] == [1.0, 3.0]
    for row in values["samples"]:
        for measure in ("right", "interval", "right_by_count", "memorisation", "spread"):
            assert row[measure] == values["real"][measure]
    assert values["real"]["memorisation"]["ratio"] == 1.0
    assert values["real"]["memorisation"]["exact_copies"] == 0.0


def test_a_perfect_model_is_at_chance_under_other_captions(perfect):
    values = perfect.values
    assert values["shuffled"]["right"] == values["real_shuffled"]["right"]
    assert values["shuffled"]["right"]["all"] == 0.0  # none is asked for the scene that it is judged by
    assert 0.2 < values["shuffled"]["right"]["count"] < 0.6


def test_a_model_that_does_not_read_is_as_good_under_other_captions(evaluate, train):
    report = evaluate(lambda asked, seed, guidance: train["image"][:N])
    assert report.values["samples"][1]["right"] == report.values["shuffled"]["right"]
    assert report.values["samples"][1]["right"]["all"] < 0.1
    assert report.values["samples"][1]["memorisation"]["exact_copies"] == 1.0
    assert report.values["samples"][1]["memorisation"]["ratio"] == 0.0


def test_guidance_is_what_was_asked_for(evaluate, test):
    """Right at 3 alone: elsewhere red, green and blue change places."""
    model = painter(test, lambda image, guidance: image if guidance == 3 else image[..., [1, 2, 0]])
    report = evaluate(model, evaluation=SceneEvaluation(n=N, guidances=(7.0, 3.0)))
    by_guidance = {row["guidance"]: row["right"] for row in report.values["samples"]}
    assert list(by_guidance) == [1.0, 3.0, 7.0]
    assert by_guidance[3.0] == report.values["real"]["right"]
    assert by_guidance[1.0]["colours"] < 0.3
    for name in ("count", "relation", "digits"):  # with wrong colours, an order is told by fewer attributes
        assert by_guidance[1.0][name] == pytest.approx(by_guidance[3.0][name], abs=0.1)
    assert report.table[0] == ("", "real", "guidance 1", "guidance 3", "guidance 7", "shuffled")


def test_every_condition_is_taken_from_the_test_examples(evaluate, test):
    calls = []

    def generate(asked, seed, guidance):
        calls.append((asked, seed, guidance))
        return test["image"][:N]

    evaluate(generate, conditions=("text", "count"), guidance=2.0, evaluation=SceneEvaluation(n=N, seed=11))
    assert [(seed, guidance) for _, seed, guidance in calls] == [(11, 1.0), (11, 2.0), (11, 2.0)]
    for asked, _, _ in calls[:2]:
        assert set(asked) == {"text", "count"}
        np.testing.assert_array_equal(asked["text"], test["text"][:N])
        np.testing.assert_array_equal(asked["count"], test["count"][:N])
    swapped = calls[2][0]
    assert {row.tobytes() for row in swapped["text"]} == {row.tobytes() for row in test["text"][:N]}
    own = {text.tobytes(): count for text, count in zip(test["text"], test["count"], strict=True)}
    assert [own[text.tobytes()] for text in swapped["text"]] == swapped["count"].tolist()


def test_one_good_image_for_each_scene_is_right_and_without_spread(evaluate, train):
    """A training image for every caption: nothing but the spread and the copies show that it is no good model."""
    single = {name: values[train["count"] == 1] for name, values in train.items()}
    data = examples("test")
    known = {text.tobytes() for text in single["text"]}
    asked = [i for i, text in enumerate(data["text"]) if text.tobytes() in known and data["count"][i] == 1]
    report = evaluate(painter(single), test={name: values[asked] for name, values in data.items()})
    row = report.values["samples"][1]
    assert row["right"]["all"] > 0.9
    assert row["spread"] == pytest.approx(0.0, abs=1e-12)
    assert row["memorisation"]["exact_copies"] == 1.0
    assert row["memorisation"]["ratio"] == 0.0
    assert report.values["real"]["spread"] == 1.0


def test_spread_is_the_variance_over_that_of_real_images(evaluate, test):
    """Halved contrast has a quarter of the variance; every scene is asked for twice."""
    twice = {name: values[np.arange(N) // 2] for name, values in test.items()}
    twice["image"] = test["image"][:N]  # of different scenes, but what is measured are distances only
    shown = test["image"][:N] // 2
    report = evaluate(lambda asked, seed, guidance: shown, test=twice)
    assert report.values["samples"][0]["spread"] == pytest.approx(0.25, rel=0.01)


def test_the_order_of_examples_does_not_matter(evaluate, perfect, test):
    order = np.random.default_rng(3).permutation(N)
    report = evaluate(painter(test), test={name: values[order] for name, values in test.items()})
    for row, expected in zip(report.values["samples"], perfect.values["samples"], strict=True):
        assert row["right"] == expected["right"]
        assert row["right_by_count"] == expected["right_by_count"]
        assert row["memorisation"] == expected["memorisation"]


def test_right_images_by_their_number_of_digits_make_the_whole(perfect, test):
    row = perfect.values["samples"][1]
    counts = test["count"][:N]
    weights = [float(np.mean(counts == int(count))) for count in row["right_by_count"]]
    assert list(row["right_by_count"]) == ["1", "2", "3"]
    assert np.dot(weights, list(row["right_by_count"].values())) == pytest.approx(row["right"]["all"])


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 20), (17, 40), (499, 500), (500, 500)])
def test_the_interval_is_wilsons(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_is_that_of_the_headline(perfect):
    row = perfect.values["samples"][1]
    low, high = wilson(round(row["right"]["all"] * N), N)
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


def test_the_same_scene_in_other_words_is_no_other_scene():
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
    with pytest.raises(UserError, match="4 of these captions ask for the same scene"):
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
        assert stated["judge"] == SceneClassifier().name
        assert stated["sampler"] == "Ddim()"
        assert set(row["right"]) == {"all", *ATTRIBUTES}
    assert [row["conditions"]["guidance"] for row in values["samples"]] == [1.0, 3.0]
    assert values["shuffled"]["conditions"]["guidance"] == 3.0
    assert values["noise_losses"] == LOSSES


def test_the_table_shows_what_was_found(perfect):
    columns = perfect.table[0]
    assert columns == ("", "real", "guidance 1", "guidance 3", "shuffled")
    assert all(len(row) == len(columns) for row in perfect.table)
    rows = {row[0]: row[1:] for row in perfect.table}
    shown = [perfect.values["real"], *perfect.values["samples"], perfect.values["shuffled"]]
    assert rows["all as asked"] == tuple(f"{column['right']['all']:.3f}" for column in shown)
    assert rows["colours as asked"] == tuple(f"{column['right']['colours']:.3f}" for column in shown)
    text = " ".join(perfect.caption)
    assert f"{N} captions" in text
    assert SceneClassifier().name in text
    assert "guidance 3" in text
    assert "steps 9" in text


def pixels(picture, colour):
    return int((picture == colour).all(axis=-1).sum())


def test_the_picture_tells_right_from_wrong(evaluate, perfect, test):
    """At the recipe's guidance, whose samples are shown, a model is right; or all but its colours is right."""
    frame = 102**2 - 96**2  # of a sample
    right = perfect.picture
    wrong = evaluate(
        painter(test, lambda image, guidance: image[..., [1, 2, 0]] if guidance == 3 else image)
    ).picture
    share = perfect.values["samples"][1]["right"]["all"]
    assert pixels(right, RIGHT) % frame == 0
    assert pixels(right, RIGHT) / (24 * frame) == pytest.approx(share, abs=0.1)
    assert pixels(wrong, RIGHT) / (24 * frame) < 0.3
    assert pixels(wrong, RIGHT) / frame + pixels(wrong, WRONG) // frame == 24  # and words of that colour
    assert right.dtype == np.uint8
    assert pixels(right, TRAIN) > 100  # the curve, where there are losses
    assert pixels(wrong, TRAIN) == 0


def test_what_cannot_be_evaluated_is_an_error(evaluate, test):
    model = painter(test)
    bare = {name: values for name, values in test.items() if name != "digits"}
    with pytest.raises(UserError, match=r"examples have no \['digits'\]"):
        evaluate(model, test=bare)
    with pytest.raises(UserError, match="text_field='words'"):
        evaluate(model, evaluation=SceneEvaluation(n=N, text_field="words"))
    with pytest.raises(UserError, match=f"n=5000: there are {len(test['image'])} test examples"):
        evaluate(model, evaluation=SceneEvaluation(n=5000))
    with pytest.raises(UserError, match="n=1:"):
        SceneEvaluation(n=1)
    with pytest.raises(ValueError, match="generate gave float64"):
        evaluate(lambda asked, seed, guidance: np.zeros(test["image"][:N].shape))
    with pytest.raises(ValueError, match=r"generate gave uint8 \(3, "):
        evaluate(lambda asked, seed, guidance: test["image"][:3])
