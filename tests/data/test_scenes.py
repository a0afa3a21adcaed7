"""Scenes match their captions and scans; novel scenes have combinations that training lacks."""

import itertools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxdiff.data.digits import stratified_split
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.scenes import COLOURS, DIGITS, RELATIONS, colours, is_novel
from jaxdiff.data.sources import Tfds

FIELDS = ("relation", "count", "digits", "colours", "boxes", "scans")
PHRASES = {"to the left of": "left of", "to the right of": "right of", "above": "above", "below": "below"}


@pytest.fixture(scope="module")
def splits():
    return {
        split: Pipeline(Tfds("scenes", split, label_key=None, text_key="caption", fields=FIELDS)).all()
        for split in ("train", "test", "novel", "cyan", "cyan_test")
    }


def scenes(part):
    return [{name: value[i] for name, value in part.items()} for i in range(len(part["image"]))]


def triples(part):
    return {
        (int(digit), int(colour), int(scene["relation"]))
        for scene in scenes(part)
        for digit, colour in list(zip(scene["digits"], scene["colours"], strict=True))[: scene["count"]]
    }


def parse(text):
    """A caption's objects and relation, parsed independently of the code that wrote it."""
    relation = next((name for phrase, name in PHRASES.items() if phrase in text), "alone")
    for phrase in PHRASES:
        text = text.replace(phrase, "|")
    objects = [part.split() for part in text.split("|")]
    assert all(words[0] == "a" and len(words) == 3 for words in objects)
    return [(DIGITS.index(digit), list(colours()).index(colour)) for _, colour, digit in objects], relation


@pytest.mark.slow
def test_captions_match_the_stored_attributes(splits):
    for part in splits.values():
        for scene in scenes(part):
            objects, relation = parse(str(scene["text"]))
            assert RELATIONS[scene["relation"]] == relation
            count = scene["count"]
            assert len(objects) == count
            assert objects == list(zip(scene["digits"][:count], scene["colours"][:count], strict=True))
            for name in ("digits", "colours", "boxes", "scans"):
                assert (scene[name][count:] == -1).all()


@pytest.mark.slow
def test_objects_are_in_the_stored_relation_and_in_no_other(splits):
    for scene in scenes(splits["train"])[:2000] + scenes(splits["novel"]):
        top, left, bottom, right = scene["boxes"][: scene["count"]].T
        assert top.min() >= 0
        assert left.min() >= 0
        assert bottom.max() <= 24
        assert right.max() <= 24
        assert (bottom - top == 8).all()
        assert (right - left == 8).all()
        holds = {
            "left of": right[:-1] <= left[1:],
            "right of": right[1:] <= left[:-1],
            "above": bottom[:-1] <= top[1:],
            "below": bottom[1:] <= top[:-1],
        }
        for name, pairs in holds.items():
            if RELATIONS[scene["relation"]] == name:
                assert pairs.all()
            else:
                assert not pairs.size or not pairs.any()


@pytest.mark.slow
def test_images_are_the_scans_in_their_colours_and_boxes_on_black(splits):
    ink = load_digits().images / 16
    for scene in scenes(splits["train"])[:300] + scenes(splits["cyan"])[:50]:
        count = scene["count"]
        outside = np.ones((24, 24), bool)
        for scan, colour, (top, left, bottom, right) in zip(
            scene["scans"][:count], scene["colours"][:count], scene["boxes"][:count], strict=True
        ):
            outside[top:bottom, left:right] = False
            patch = scene["image"][top:bottom, left:right].astype(float)
            rgb = np.array(list(colours().values())[colour])
            amount = patch @ rgb / (rgb @ rgb)
            assert np.abs(patch - amount[..., None] * rgb).max() < 1, "nothing but the colour"
            np.testing.assert_allclose(amount, ink[scan], atol=0.01)
        assert not scene["image"][outside].any()


@pytest.mark.slow
def test_each_split_uses_its_own_scans(splits):
    labels = load_digits().target
    train, test = (set(rows) for rows in stratified_split(labels, 297))
    for name, part in splits.items():
        scans, digits = part["scans"][part["scans"] >= 0], part["digits"][part["digits"] >= 0]
        assert np.array_equal(labels[scans], digits)
        assert set(scans) <= (train if name in ("train", "cyan") else test)
    assert len(set(splits["train"]["scans"].ravel())) > 1400, "nearly all of 1,500, and -1"


@pytest.mark.slow
def test_test_combinations_are_new_but_all_their_pairs_are_in_training(splits):
    train, test, novel = (triples(splits[name]) for name in ("train", "test", "novel"))
    assert not train & novel
    assert not test & novel
    assert test <= train
    for kept in itertools.combinations(range(3), 2):
        assert {tuple(one[i] for i in kept) for one in novel} <= {
            tuple(one[i] for i in kept) for one in train
        }
    everything = set(itertools.product(range(10), range(6), range(5)))
    assert train == {one for one in everything if not is_novel(*one)}
    assert novel == everything - train
    assert len(novel) == len(everything) / 5


@pytest.mark.slow
def test_the_new_colour_is_in_every_scene_of_its_splits_and_in_no_other(splits):
    for name, part in splits.items():
        new = (part["colours"] == len(COLOURS)).sum(axis=1)
        assert new.max() <= 3
        assert np.all((new > 0) == name.startswith("cyan"))
    several = splits["cyan"]["count"] > 1
    alone = (splits["cyan"]["colours"] == len(COLOURS)).sum(axis=1) == 1
    assert 0.5 < np.mean(alone[several]) < 0.8, "other objects are cyan in a quarter of the cases"


@pytest.mark.slow
def test_there_are_one_to_three_objects_and_all_relations(splits):
    for part in splits.values():
        counts = np.bincount(part["count"], minlength=4) / len(part["count"])
        assert np.abs(counts - (0, 0.2, 0.5, 0.3)).max() < 0.05
        relations = np.bincount(part["relation"], minlength=5) / len(part["count"])
        assert np.abs(relations - 0.2).max() < 0.05


@pytest.mark.slow
def test_texts_are_str():
    example = Tfds("scenes", label_key=None, text_key="caption").open()[0]
    assert example["text"].dtype.kind == "U"
    assert example["text"].shape == ()
