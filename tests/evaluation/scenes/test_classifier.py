"""The classifier reads real scenes, and finds the one attribute that an image lacks."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxdiff.data.digits import stratified_split
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.scenes import COLOURS, RELATIONS, SIZE, compose, render
from jaxdiff.data.sources import Tfds
from jaxdiff.errors import UserError
from jaxdiff.evaluation.scenes.classifier import (
    ATTRIBUTES,
    FIELDS,
    SceneClassifier,
    compare,
    in_reading_order,
)

BLACK = np.zeros((SIZE, SIZE, 3), np.uint8)


def scenes_of(split):
    return Pipeline(Tfds("scenes", split, label_key=None, fields=(*FIELDS, "boxes"))).all()


@pytest.fixture(scope="module")
def splits():
    return {
        split: scenes_of(part)
        for split, part in (("train", "train[:4000]"), ("test", "test"), ("novel", "novel"))
    }


@pytest.fixture(scope="module")
def classifier(splits):
    return SceneClassifier().fit(splits["train"]["image"], splits["train"])


@pytest.fixture(scope="module")
def scans():
    """Images of all scans, and by digit the numbers of those that the training scenes do not show."""
    data = load_digits()
    _, test = stratified_split(data.target, 297)
    return data.images, [test[data.target[test] == digit] for digit in range(10)]


def batch(scenes):
    """Scenes of any sizes as the stored fields of a data set."""
    padded = {
        name: np.array([np.append(scene[name], [-1] * (3 - scene["count"])) for scene in scenes]).astype(int)
        for name in ("digits", "colours")
    }
    return {name: np.array([scene[name] for scene in scenes]) for name in ("count", "relation")} | padded


def with_another_colour(scene, by_digit):
    del by_digit
    last = scene["count"] - 1
    colours = scene["colours"].copy()
    colours[last] = (colours[last] + 1) % len(COLOURS)
    return {**scene, "colours": colours}


def with_another_digit(scene, by_digit):
    scans, digits = scene["scans"].copy(), scene["digits"].copy()
    digits[0] = (digits[0] + 3) % 10
    scans[0] = by_digit[digits[0]][0]
    return {**scene, "scans": scans, "digits": digits}


def in_another_order(scene, by_digit):
    """The same objects in the reverse order of positions."""
    del by_digit
    boxes, objects = scene["boxes"], np.stack([scene["digits"], scene["colours"]])
    if np.array_equal(objects, objects[:, ::-1]):
        return None
    sides = boxes[:, 2:] - boxes[:, :2]
    tops = boxes[::-1, :2]
    smallest = np.minimum(sides, sides[::-1])  # a larger digit might not fit into the other's strip
    return {**scene, "boxes": np.concatenate([tops, tops + smallest], axis=1)}


def turned(scene, by_digit):
    """One above the other instead of side by side, and the reverse."""
    del by_digit
    return {**scene, "boxes": scene["boxes"][:, [1, 0, 3, 2]]} if scene["count"] > 1 else None


def with_colours_exchanged(scene, by_digit):
    del by_digit
    distinct = [len(set(scene[name].tolist())) == scene["count"] for name in ("digits", "colours")]
    if scene["count"] == 1 or not all(distinct):
        return None
    return {**scene, "colours": np.roll(scene["colours"], 1)}


def without_the_last(scene, by_digit):
    del by_digit
    arrays = {name: value[:-1] for name, value in scene.items() if isinstance(value, np.ndarray)}
    return {**scene, **arrays}


@pytest.mark.slow
@pytest.mark.parametrize("split", ["test", "novel"])
def test_unseen_scenes_are_read_without_error(classifier, splits, split):
    right = classifier(splits[split]["image"], splits[split])
    fractions = {name: values.mean() for name, values in right.items()}
    assert min(fractions[name] for name in ("count", "relation", "colours")) >= 0.998
    assert fractions["digits"] >= 0.975
    assert fractions["all"] >= 0.975


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (with_another_colour, {"colours"}),
        (with_another_digit, {"digits"}),
        (in_another_order, {"relation"}),
        (turned, {"relation"}),
        (with_colours_exchanged, {"colours"}),
        (without_the_last, {"count", "relation", "digits", "colours"}),
    ],
)
def test_a_changed_attribute_is_wrong_and_no_other(classifier, scans, change, wrong):
    images, by_digit = scans
    rng = np.random.RandomState(5)
    wanted = [compose(rng, by_digit, novel=False) for _ in range(80)]
    shown = [change(scene, by_digit) for scene in wanted]
    wanted, shown = zip(*((a, b) for a, b in zip(wanted, shown, strict=True) if b is not None), strict=True)
    assert len(wanted) >= 20
    before = classifier(np.stack([render(images, scene) for scene in wanted]), batch(wanted))
    after = classifier(np.stack([render(images, scene) for scene in shown]), batch(wanted))
    assert before["all"].mean() > 0.95
    assert not after["all"].any()
    for name in ATTRIBUTES:
        if name in wrong:
            assert after[name][before["all"]].mean() < 0.05  # where a digit is mistaken, orders are too
        else:
            assert after[name][before["all"]].mean() > 0.95


@pytest.mark.slow
def test_other_images_are_wrong(classifier, splits):
    test = splits["test"]
    noise = np.random.default_rng(0).integers(0, 256, (100, SIZE, SIZE, 3)).astype(np.uint8)
    for images in (noise, np.repeat(BLACK[None], 100, 0), np.repeat(255 + BLACK[None], 100, 0)):
        wanted = {name: test[name][:100] for name in FIELDS}
        assert not classifier(images, wanted)["count"].any()
        assert not classifier(images, wanted)["all"].any()


def test_a_misplaced_digit_is_detected(classifier, splits):
    """Two side by side near the top, and a third one near the bottom, outside any relation."""
    test = splits["test"]
    low = test["boxes"][:, :, 2].max(axis=1)
    beside = (test["count"] == 2) & (test["relation"] == RELATIONS.index("left of"))
    rows = np.flatnonzero(beside & (low <= 12))[:20]
    single = test["image"][(test["count"] == 1) & (test["boxes"][:, 0, 0] >= 13)][0]
    images = test["image"][rows] | single  # the two have no pixel in common
    assert len(rows) >= 10
    assert classifier(test["image"][rows], {name: test[name][rows] for name in FIELDS})["all"].mean() > 0.9
    assert not classifier(images, {name: test[name][rows] for name in FIELDS})["all"].any()


def test_a_digit_of_two_colours_has_neither(classifier, splits):
    test = splits["test"]
    rows = np.flatnonzero((test["count"] == 1) & (test["colours"][:, 0] == list(COLOURS).index("red")))
    wanted = {name: test[name][rows] for name in FIELDS}
    images = test["image"][rows].copy()
    assert classifier(images, wanted)["colours"].all()
    for image, box in zip(images, test["boxes"][rows, 0], strict=True):
        middle = (box[0] + box[2]) // 2
        image[middle:] = image[middle:, :, [1, 2, 0]]  # red becomes blue
    right = classifier(images, wanted)
    assert not right["colours"].any()
    assert right["digits"].mean() > 0.9


def test_faint_noise_and_specks_are_ignored(classifier, splits):
    rng = np.random.default_rng(0)
    images = splits["test"]["image"][:300] + rng.normal(0, 8, (300, SIZE, SIZE, 3))
    images[np.arange(300), rng.integers(0, SIZE, 300), rng.integers(0, SIZE, 300)] += 60
    images = np.clip(images, 0, 255).astype(np.uint8)
    wanted = {name: splits["test"][name][:300] for name in FIELDS}
    assert classifier(images, wanted)["all"].mean() > 0.93


def test_an_image_is_read_the_same_among_any_others(classifier, splits):
    images, order = splits["test"]["image"][:60], np.random.default_rng(1).permutation(60)
    everything = classifier.read(images)
    for read, expected in zip(classifier.read(images[order[:30]]), everything, strict=True):
        np.testing.assert_array_equal(read, expected[order[:30]])


def test_reading_order_is_where_the_boxes_are(splits):
    train = splits["train"]
    read = in_reading_order(train)
    for i in range(1000):
        count = train["count"][i]
        corner = train["boxes"][i, :count, 0 if read.stacked[i] else 1]
        order = np.argsort(corner)
        np.testing.assert_array_equal(read.digits[i, :count], train["digits"][i, order])
        np.testing.assert_array_equal(read.colours[i, :count], train["colours"][i, order])
        assert (read.digits[i, count:] == -1).all()
        assert bool(read.stacked[i]) == (RELATIONS[train["relation"][i]] in ("above", "below"))


def test_a_scene_in_other_words_is_the_same():
    said = {"relation": np.array([1, 4]), "count": np.array([2, 3])}
    said |= {"digits": np.array([[3, 7, -1], [1, 2, 3]]), "colours": np.array([[0, 1, -1], [5, 4, 4]])}
    words = {"relation": np.array([2, 3]), "count": np.array([2, 3])}
    words |= {"digits": np.array([[7, 3, -1], [3, 2, 1]]), "colours": np.array([[1, 0, -1], [4, 4, 5]])}
    assert compare(in_reading_order(said), words)["all"].all()
    assert not compare(in_reading_order(said), {**words, "relation": said["relation"]})["relation"].any()


def test_fewer_training_scenes_are_the_first(splits):
    train, test = splits["train"], splits["test"]
    part = {name: values[:300] for name, values in train.items()}
    few = SceneClassifier(scenes=300).fit(train["image"], train).read(test["image"][:100])
    same = SceneClassifier().fit(part["image"], part).read(test["image"][:100])
    for left, right in zip(few, same, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    "arguments", [{"c": 0.0}, {"gamma": -1.0}, {"side": 1}, {"faint": 1.0}, {"pure": 1.5}, {"scenes": 0}]
)
def test_impossible_settings_are_errors(arguments):
    with pytest.raises(UserError, match=f"{next(iter(arguments))}="):
        SceneClassifier(**arguments)


def test_unsuitable_data_are_errors(splits):
    train = splits["train"]
    with pytest.raises(UserError, match=r"fields=.*got no \['count'\]"):
        SceneClassifier().fit(train["image"], {name: train[name] for name in FIELDS if name != "count"})
    with pytest.raises(UserError, match=r"images=.*expected images of scenes"):
        SceneClassifier().fit(train["image"][:, ::2, ::2], train)
