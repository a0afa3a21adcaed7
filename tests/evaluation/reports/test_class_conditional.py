import dataclasses
import hashlib
import json

import numpy as np
import pytest

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.config.renamed import upgrade
from jaxdiff.errors import UserError
from jaxdiff.evaluation.classifiers.svm import SvmClassifier
from jaxdiff.evaluation.evaluation import Evaluation
from jaxdiff.evaluation.examples import InMemory
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.frechet import Frechet
from jaxdiff.evaluation.protocols import Evaluator
from jaxdiff.evaluation.reports.class_conditional import ImageEvaluation
from jaxdiff.evaluation.reports.files import write
from jaxdiff.evaluation.requests import Requests, matching
from tests.evaluation.models import inputs

ENDS = {"log_snr": (-5, 5), "train": (1, 0.1), "test": (1.1, 0.2)}
LOSSES = {name: np.linspace(*ends, 7).tolist() for name, ends in ENDS.items()}


def real_images(train, labels, seed):
    return train[0][matching(labels, train[1], seed)]


def labelled(train, test):
    """Both sets as fields of examples."""
    return [{"image": images, "label": labels} for images, labels in (train, test)]


def class_model(generate, train, test, **settings):
    """A class-conditional model that generates images by this function."""
    return inputs(generate, ("label",), *labelled(train, test), **settings)


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

    settings = {"sampler": "Ddim()", "steps": 50}
    return class_model(generate, *digits, noise_losses=LOSSES, settings=settings)


@pytest.fixture(scope="module")
def report(evaluation, model):
    return evaluation(model)


@pytest.fixture(scope="module")
def values(report):
    return report.values


def test_training_images_as_samples_match_the_real_column(values):
    row, real = values["samples"][0], values["real"]
    assert row["relative"] == real["relative"] == {"recall": 1.0, "coverage": 1.0}
    for name in ("accuracy", "frechet", "precision", "recall", "density", "coverage", "by_k", "spread"):
        assert row[name] == real[name], name
    assert row["memorization"]["exact_copies"] == 1.0
    assert row["memorization"]["ratio"] == 0.0


def test_collapsed_classes_are_found_where_accuracy_is_perfect(values):
    collapsed = values["samples"][1]
    assert collapsed["accuracy"] == 1.0
    assert collapsed["spread"]["minimum"] < 1e-20
    assert collapsed["relative"]["recall"] < 0.3
    assert collapsed["memorization"]["exact_copies"] == 0.0


def test_every_row_states_its_conditions(values):
    for row in (values["real"], *values["samples"]):
        stated = row["conditions"]
        assert (stated["n"], stated["seed"], stated["sampler"], stated["steps"]) == (200, 0, "Ddim()", 50)
        assert stated["features"] == "pixels in [0, 1]"
        assert stated["k"] == 5
        assert stated["classifier"] == SvmClassifier().name
        assert "round" in stated["quantization"]
    assert [row["conditions"]["guidance"] for row in values["samples"]] == [1.0, 3.0]
    assert set(values["samples"][0]["by_k"]) == {"3", "4", "5"}
    assert values["samples"][0]["by_k"]["5"]["recall"] == values["samples"][0]["recall"]
    assert values["samples"][0]["classifier_accuracy_on_test"] > 0.975


def test_a_fingerprint_covers_all_images_and_labels(values, model, digits):
    for name, (images, labels) in zip(("train", "test"), digits, strict=True):
        parts = (str(images.shape).encode(), images.tobytes(), labels.astype(np.int64).tobytes())
        expected = hashlib.sha256(b"".join(parts)).hexdigest()
        assert values["real"]["conditions"][name] == f"sha256:{expected[:16]}"


def test_values_survive_json(values):
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_batches_of_any_size_are_the_same_evaluation(model, values, digits):
    """A model that generates image i of a seed in any batch, and examples that are never read at once."""
    train, test = (InMemory(fields) for fields in labelled(*digits))
    largest = []

    class Streamed(InMemory):
        def rows(self, index):
            largest.append(len(index))
            return super().rows(index)

    def generate(conditions, seed, guidance, first):
        everything = {"label": np.arange(200) % 10}
        images = model.generate(everything, seed, guidance, 0)[first : first + len(conditions["label"])]
        np.testing.assert_array_equal(
            everything["label"][first : first + len(images)], conditions["label"][: len(images)]
        )
        return np.resize(images, (len(conditions["label"]), 8, 8, 1))

    small = dataclasses.replace(
        model,
        generate=generate,
        train=Streamed(train.fields),
        test=Streamed(test.fields),
        batch_size=37,
    )
    found = ImageEvaluation(n=200, guidances=(3.0,))(small).values
    assert max(largest) <= 60  # of the figure
    for row, expected in zip(
        (found["real"], *found["samples"]), (values["real"], *values["samples"]), strict=True
    ):
        for name in ("accuracy", "precision", "recall", "density", "coverage", "memorization", "relative"):
            assert row[name] == expected[name], name
        assert row["frechet"] == pytest.approx(expected["frechet"], rel=1e-6)
        assert row["spread"]["minimum"] == pytest.approx(expected["spread"]["minimum"], abs=1e-12)
        assert row["conditions"] == expected["conditions"]


def test_unseen_images_are_new_and_varied(digits):
    # Half of the training images plays the model: its samples were never in "training".
    (images, labels), test = digits
    train, unseen = (images[:750], labels[:750]), (images[750:], labels[750:])

    def generate(conditions, seed, guidance):
        return real_images(unseen, conditions["label"], seed)

    row = ImageEvaluation(n=300)(class_model(generate, train, test)).values["samples"][0]
    assert row["memorization"]["ratio"] == pytest.approx(1, abs=0.1)
    assert row["spread"]["minimum"] > 0.7
    assert row["relative"]["recall"] == pytest.approx(1, abs=0.05)
    assert row["relative"]["coverage"] == pytest.approx(1, abs=0.05)


def test_noise_fails_all_metrics_but_novelty(digits):
    def generate(conditions, seed, guidance):
        return np.random.default_rng(seed).integers(0, 256, (200, 8, 8, 1)).astype(np.uint8)

    row = ImageEvaluation(n=200)(class_model(generate, *digits)).values["samples"][0]
    assert row["accuracy"] < 0.25
    assert row["precision"] == 0.0
    assert row["coverage"] == 0.0
    assert row["memorization"]["ratio"] > 1.5


def test_few_training_images_are_compared_at_equal_numbers(digits):
    # More samples cover more (and have smaller balls): 60 real images must be compared with 60 samples.
    (images, labels), test = digits
    train = images[:60], labels[:60]
    evaluation = ImageEvaluation(n=200)
    chosen = matching(np.arange(200) % 10, train[1], 0)
    extra = test[0][np.arange(200)]  # without a real counterpart: they raise the coverage
    images = np.where((chosen >= 0)[:, None, None, None], train[0][chosen], extra)
    values = evaluation(class_model(lambda conditions, seed, guidance: images, train, test)).values
    assert values["samples"][0]["coverage"] > values["real"]["coverage"]
    assert values["real"]["conditions"]["n"] == (chosen >= 0).sum() <= 60
    assert values["samples"][0]["relative"] == {"recall": 1.0, "coverage": 1.0}


def test_matching_is_stratified_seeded_and_without_repeats():
    labels, real_labels = np.arange(30) % 3, np.repeat([0, 1, 2], [20, 20, 4])
    chosen = matching(labels, real_labels, 0)
    found = chosen[chosen >= 0]
    np.testing.assert_array_equal(real_labels[found], labels[chosen >= 0])
    assert len(set(found)) == len(found) == 10 + 10 + 4
    np.testing.assert_array_equal(chosen, matching(labels, real_labels, 0))
    assert (chosen != matching(labels, real_labels, 1)).any()


def test_classes_are_requested_in_turn(digits):
    model = class_model(None, *digits)
    requests = Requests.make(model, 1000, digits[0][1], digits[1][1])
    assert np.bincount(requests.labels).tolist() == [100] * 10
    assert np.bincount(requests.labels[:50]).tolist() == [5] * 10
    conditions, fields = requests.batch(np.array([3, 41]))
    assert conditions == fields
    assert conditions["label"].tolist() == [3, 1]
    with pytest.raises(UserError, match="samples=19: expected at least 20"):
        Requests.make(model, 19, digits[0][1], digits[1][1])


def test_other_conditions_come_from_test_examples(digits):
    train, (images, labels) = digits
    test = {"image": images, "label": labels, "low_res": images[:, ::2, ::2]}
    model = inputs(None, ("label", "low_res"), labelled(train, train)[0], test)
    requests = Requests.make(model, 400, train[1], labels)
    rows = np.arange(400) % len(images)
    np.testing.assert_array_equal(requests.labels, labels[rows])
    conditions, fields = requests.batch(np.arange(300, 310))
    assert set(conditions) == {"label", "low_res"}
    np.testing.assert_array_equal(conditions["low_res"], images[rows[300:310]][:, ::2, ::2])
    np.testing.assert_array_equal(fields["image"], images[rows[300:310]])


def test_a_label_of_any_name_is_the_class(digits):
    """The class label is the condition that the inputs name."""
    train, test = ({"image": fields["image"], "digit": fields["label"]} for fields in labelled(*digits))

    def generate(conditions, seed, guidance):
        return real_images(digits[0], conditions["digit"], seed)

    model = dataclasses.replace(inputs(generate, ("digit",), train, test), label="digit")
    (row,) = ImageEvaluation(n=100)(model).values["samples"]
    assert row["accuracy"] > 0.99
    assert set(row["accuracy_by_class"]) == set("0123456789")


def test_a_model_without_classes_is_evaluated_without_them(digits):
    (images, _), (held_out, _) = digits

    def generate(conditions, seed, guidance):
        assert conditions == {"n": 200}
        return images[:200]

    examples = {"image": images}, {"image": held_out}
    found = ImageEvaluation(n=200)(inputs(generate, (), *examples))
    (row,) = found.values["samples"]
    assert row["accuracy"] is None
    assert row["memorization"]["exact_copies"] == 1.0
    assert row["recall"] > 0.5
    assert not any("accuracy" in line[0] for line in found.table)
    with pytest.raises(ValueError, match="expected uint8"):
        ImageEvaluation(n=200)(inputs(lambda *_: images[:5], (), *examples))


def test_any_metrics_make_an_evaluation(digits):
    """A table, scalars and a figure follow from the metrics; real images have no neighbours without memorization."""
    (images, _), (held_out, _) = digits
    model = inputs(lambda *_: images[:50], (), {"image": images}, {"image": held_out})
    metrics = (Frechet(), Frechet(reference="train", key="to_train"))
    report = Evaluation(metrics, samples=50)(model)
    assert [row[0] for row in report.table[1:]] == ["Frechet distance to test", "Frechet distance to train"]
    (row,) = report.values["samples"]
    assert report.scalars == {
        "evaluation/guidance_1/frechet": row["frechet"],
        "evaluation/guidance_1/to_train": row["to_train"],
    }
    assert report.figure.dtype == np.uint8
    assert "relative" in row


def test_losses_of_different_lengths_are_refused(evaluation, model):
    with pytest.raises(ValueError, match="lists of one length"):
        evaluation(dataclasses.replace(model, noise_losses={**LOSSES, "test": [1.0]}))


@pytest.mark.parametrize("arguments", [{"n": 5}, {"k": 0}, {"every": -1}])
def test_impossible_settings_are_errors(arguments):
    with pytest.raises(UserError, match=f"{next(iter(arguments))}="):
        ImageEvaluation(**arguments)


def test_evaluations_are_config_blocks():
    block = spec(
        ImageEvaluation, features=spec(Pixels), classifier=spec(SvmClassifier), n=500, guidances=(1.0, 2.0)
    )
    built = build(from_json(to_json(block)), ("jaxdiff",))
    assert built == ImageEvaluation(n=500, guidances=(1.0, 2.0))
    assert isinstance(built, Evaluator)
    block = spec(Evaluation, metrics=(spec(Frechet, features=spec(Pixels)),), samples=10, every=100)
    built = build(from_json(to_json(block)), ("jaxdiff",))
    assert built == Evaluation((Frechet(),), samples=10, every=100)
    assert isinstance(built, Evaluator)


def test_a_config_of_the_previous_version_builds():
    old = {
        "target": "jaxdiff.evaluation.evaluator:ImageEvaluation",
        "features": {"target": "jaxdiff.evaluation.features:Pixels"},
        "judge": {"target": "jaxdiff.evaluation.judge:SvcJudge", "c": 3.0, "gamma": None},
        "n": 500, "k": 5, "guidances": [], "seed": 0, "likelihood": None,
    }  # fmt: skip
    assert build(upgrade(old), ("jaxdiff",)) == ImageEvaluation(classifier=SvmClassifier(3.0), n=500)


def test_the_figure_shows_the_nearest_training_image_below_each_sample(report, digits):
    """At guidance 1 samples are training images: each stands above itself."""
    cell, gap = 40, 4
    panel = report.figure[24 + 52 : 24 + 52 + cell, 24 + 62 : 24 + 62 + cell]
    below = report.figure[24 + 52 + cell + gap // 2 :][:cell, 24 + 62 : 24 + 62 + cell]
    np.testing.assert_array_equal(panel, below)
    assert panel.std() > 10


def test_written_files_are_the_report(report, tmp_path):
    from PIL import Image

    for _ in range(2):  # a second report replaces the first
        write(report, str(tmp_path / "new"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["evaluation.json", "evaluation.png"]
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text()) == report.values
    with Image.open(tmp_path / "new" / "evaluation.png") as image:
        image.load()
        assert image.mode == "RGB"


def test_table_and_scalars_hold_every_headline_value(report):
    text = str(report)
    for row in (report.values["real"], *report.values["samples"]):
        for name in ("accuracy", "precision", "recall", "coverage"):
            assert f"{row[name]:.3f}" in text
    assert "200 samples against 297 test images" in text
    for row in report.values["samples"]:
        prefix = f"evaluation/guidance_{row['guidance']:g}"
        assert report.scalars[f"{prefix}/recall"] == row["recall"]
        assert report.scalars[f"{prefix}/memorization.ratio"] == row["memorization"]["ratio"]
