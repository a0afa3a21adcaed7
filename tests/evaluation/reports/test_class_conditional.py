import dataclasses
import json

import numpy as np
import pytest

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.errors import UserError
from jaxdiff.evaluation.classifiers.svm import SvmClassifier
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.protocols import Evaluation, EvaluationInputs
from jaxdiff.evaluation.reports.class_conditional import ImageEvaluation, matching
from jaxdiff.evaluation.reports.files import table, write

ENDS = {"log_snr": (-5, 5), "train": (1, 0.1), "test": (1.1, 0.2)}
LOSSES = {name: np.linspace(*ends, 7).tolist() for name, ends in ENDS.items()}


def real_images(train, labels, seed):
    return train[0][matching(labels, train[1], seed)]


def subject(generate, train, test, **settings):
    """A class-conditional model that makes images in this way."""
    examples = ({"image": images, "label": labels} for images, labels in (train, test))
    return EvaluationInputs(generate, ("label",), 1.0, *examples, **settings)


@pytest.fixture(scope="module")
def evaluation():
    return ImageEvaluation(n=200, guidances=(3.0,))


@pytest.fixture(scope="module")
def model(digits):
    """Real training images at guidance 1; at guidance 3 every class has collapsed to its mean."""
    train, _ = digits

    def generate(conditions, seed, guidance):
        labels = conditions["label"]
        if guidance == 1:
            return real_images(train, labels, seed)
        return np.stack([train[0][train[1] == label].mean(axis=0).astype(np.uint8) for label in labels])

    return subject(generate, *digits, noise_losses=LOSSES, settings={"sampler": "Ddim()", "steps": 50})


@pytest.fixture(scope="module")
def whole(evaluation, model):
    return evaluation(model)


@pytest.fixture(scope="module")
def report(whole):
    return whole.values


def test_real_training_images_match_the_yardstick(report):
    row, yardstick = report["samples"][0], report["yardstick"]
    assert row["over_yardstick"] == {"recall": 1.0, "coverage": 1.0}
    for name in ("accuracy", "frechet", "precision", "recall", "density", "coverage", "by_k", "spread"):
        assert row[name] == yardstick[name], name
    assert row["memorisation"]["exact_copies"] == 1.0
    assert row["memorisation"]["ratio"] == 0.0


def test_collapsed_classes_are_seen_where_accuracy_sees_nothing(report):
    collapsed = report["samples"][1]
    assert collapsed["accuracy"] == 1.0
    assert collapsed["spread"]["minimum"] < 1e-20
    assert collapsed["over_yardstick"]["recall"] < 0.3
    assert collapsed["memorisation"]["exact_copies"] == 0.0


def test_every_row_states_its_conditions(report):
    for row, n in [(report["yardstick"], 200), (report["samples"][0], 200), (report["samples"][1], 200)]:
        stated = row["conditions"]
        assert (stated["n"], stated["seed"], stated["sampler"], stated["steps"]) == (n, 0, "Ddim()", 50)
        assert stated["features"] == "pixels in [0, 1]"
        assert "round" in stated["quantisation"]
    assert [row["conditions"]["guidance"] for row in report["samples"]] == [1.0, 3.0]
    assert set(report["samples"][0]["by_k"]) == {"3", "4", "5"}
    assert report["samples"][0]["by_k"]["5"]["recall"] == report["samples"][0]["recall"]
    assert report["judge_accuracy_on_test"] > 0.975


def test_report_survives_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_unseen_images_are_new_and_varied(digits):
    # Half of the training images plays the model: what it gives was never in "training".
    (images, labels), test = digits
    train, unseen = (images[:750], labels[:750]), (images[750:], labels[750:])

    def generate(conditions, seed, guidance):
        return real_images(unseen, conditions["label"], seed)

    row = ImageEvaluation(n=300)(subject(generate, train, test)).values["samples"][0]
    assert row["memorisation"]["ratio"] == pytest.approx(1, abs=0.1)
    assert row["spread"]["minimum"] > 0.7
    assert row["over_yardstick"]["recall"] == pytest.approx(1, abs=0.05)
    assert row["over_yardstick"]["coverage"] == pytest.approx(1, abs=0.05)


def test_noise_fails_every_question_but_novelty(digits):
    def generate(conditions, seed, guidance):
        return np.random.default_rng(seed).integers(0, 256, (200, 8, 8, 1)).astype(np.uint8)

    row = ImageEvaluation(n=200)(subject(generate, *digits)).values["samples"][0]
    assert row["accuracy"] < 0.25
    assert row["precision"] == 0.0
    assert row["coverage"] == 0.0
    assert row["memorisation"]["ratio"] > 1.5


def test_few_training_images_are_compared_at_equal_numbers(digits):
    # More samples cover more (and have smaller balls): beside a yardstick of 60 images, 60 samples must stand.
    (images, labels), test = digits
    train = images[:60], labels[:60]
    evaluation = ImageEvaluation(n=200)
    chosen = matching(np.arange(200) % 10, train[1], 0)
    extra = test[0][np.arange(200)]  # what the yardstick has no counterpart of: it raises the coverage
    images = np.where((chosen >= 0)[:, None, None, None], train[0][chosen], extra)
    report = evaluation(subject(lambda conditions, seed, guidance: images, train, test)).values
    assert report["samples"][0]["coverage"] > report["yardstick"]["coverage"]
    assert report["yardstick"]["conditions"]["n"] == (chosen >= 0).sum() <= 60
    assert report["samples"][0]["over_yardstick"] == {"recall": 1.0, "coverage": 1.0}


def test_matching_is_stratified_seeded_and_without_repeats():
    labels, real_labels = np.arange(30) % 3, np.repeat([0, 1, 2], [20, 20, 4])
    chosen = matching(labels, real_labels, 0)
    found = chosen[chosen >= 0]
    np.testing.assert_array_equal(real_labels[found], labels[chosen >= 0])
    assert len(set(found)) == len(found) == 10 + 10 + 4
    np.testing.assert_array_equal(chosen, matching(labels, real_labels, 0))
    assert (chosen != matching(labels, real_labels, 1)).any()


def test_classes_are_asked_for_in_turn(digits):
    train, test = digits
    conditions, labels = ImageEvaluation(n=1000).ask(("label",), train, {"image": test[0], "label": test[1]})
    assert np.bincount(labels).tolist() == [100] * 10
    assert np.bincount(labels[:50]).tolist() == [5] * 10
    assert conditions["label"] is labels


def test_other_conditions_are_those_of_test_examples(digits):
    train, (images, labels) = digits
    small = {"image": images, "label": labels, "low_res": images[:, ::2, ::2]}
    conditions, asked = ImageEvaluation(n=400).ask(("label", "low_res"), train, small)
    rows = np.arange(400) % len(images)
    np.testing.assert_array_equal(asked, labels[rows])
    np.testing.assert_array_equal(conditions["low_res"], images[rows][:, ::2, ::2])


def test_a_model_without_classes_is_judged_without_them(digits):
    (images, _), (held_out, _) = digits

    def generate(conditions, seed, guidance):
        assert conditions == {"n": 200}
        return images[:200]

    examples = {"image": images}, {"image": held_out}
    found = ImageEvaluation(n=200)(EvaluationInputs(generate, (), 1.0, *examples))
    (row,) = found.values["samples"]
    assert row["accuracy"] is None
    assert row["memorisation"]["exact_copies"] == 1.0
    assert row["recall"] > 0.5
    assert not any("accuracy" in line[0] for line in found.table)
    with pytest.raises(ValueError, match="expected uint8"):
        ImageEvaluation(n=200)(EvaluationInputs(lambda *_: images[:5], (), 1.0, *examples))


def test_losses_of_different_lengths_are_refused(evaluation, model):
    with pytest.raises(ValueError, match="lengths differ"):
        evaluation(dataclasses.replace(model, noise_losses={**LOSSES, "test": [1.0]}))


@pytest.mark.parametrize("arguments", [{"n": 5}, {"k": 0}])
def test_impossible_settings_are_errors(arguments):
    with pytest.raises(UserError, match=f"{next(iter(arguments))}="):
        ImageEvaluation(**arguments)


def test_evaluation_is_a_config_block():
    block = spec(
        ImageEvaluation, features=spec(Pixels), judge=spec(SvmClassifier), n=500, guidances=(1.0, 2.0)
    )
    built = build(from_json(to_json(block)), ("jaxdiff",))
    assert built == ImageEvaluation(n=500, guidances=(1.0, 2.0))
    assert isinstance(built, Evaluation)


def test_gallery_shows_the_nearest_training_image(evaluation, model, digits):
    labels = np.arange(200) % 10
    samples = {g: model.generate({"label": labels}, 0, g) for g in (1.0, 3.0)}
    gallery = evaluation.gallery(samples, labels, digits[0], per_class=3)
    assert np.bincount(gallery.labels).tolist() == [3] * 10
    np.testing.assert_array_equal(gallery.neighbours[1.0], gallery.images[1.0])  # real images are their own
    assert gallery.images[3.0].shape == gallery.neighbours[3.0].shape == (30, 8, 8, 1)


def test_written_files_are_the_report(whole, tmp_path):
    from PIL import Image

    for _ in range(2):  # a second report replaces the first
        write(whole, str(tmp_path / "new"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["evaluation.json", "evaluation.png"]
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text()) == whole.values
    with Image.open(tmp_path / "new" / "evaluation.png") as image:
        image.load()
        assert image.mode == "RGB"


def test_table_holds_every_headline_figure(whole):
    text = table(whole)
    for row in (whole.values["yardstick"], *whole.values["samples"]):
        for name in ("accuracy", "precision", "recall", "coverage"):
            assert f"{row[name]:.3f}" in text
    assert "200 samples against 297 test images" in text
