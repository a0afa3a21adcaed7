"""Classes are given by name or by number, and no word has two meanings in silence."""

import json
import logging

import numpy as np
import pytest

from jaxdiff.conditioning.class_token import ClassToken
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.magnitude import MagnitudeClassLabel
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.config import describe, spec
from jaxdiff.errors import UserError


def named(*names, kind=ClassLabel):
    return kind(len(names), 4).with_class_names(names)


INSECTS = ("ant", "bee", "cat", "tench, Tinca tinca")


@pytest.mark.parametrize("kind", [ClassLabel, ClassToken, MagnitudeClassLabel])
@pytest.mark.parametrize(
    ("word", "classes"),
    [
        ("cat", [2]),
        ("2", [2]),
        ("bee,0", [1, 0]),
        (" bee , ant ", [1, 0]),
        ("all", [0, 1, 2, 3]),
        ("none", [None]),
        ("null", [None]),
        ("cat,none", [2, None]),
        ("tench, Tinca tinca", [3]),
        ('"cat"', [2]),
    ],
)
def test_words_of_the_command_line(kind, word, classes):
    assert named(*INSECTS, kind=kind).parse(word, "--label") == classes


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cot", r"--label=cot: expected classes, got 'cot'\. Fix: .*ant=0, bee=1, cat=2.*did you mean cat"),
        ("bee,dog", r"--label=bee,dog: expected classes, got 'dog'"),
        ("1,9", r"--label=9: expected a class from 0 to 3, got 9\. Fix: .*ant=0"),
        ("[" * 100_000, "too many nested brackets"),
    ],
)
def test_other_words_are_refused_with_the_classes(word, message):
    with pytest.raises(UserError, match=message) as error:
        named(*INSECTS).parse(word, "--label")
    assert len(str(error.value)) < 400


def test_values_of_python_and_json(tmp_path):
    label = named(*INSECTS)
    np.testing.assert_array_equal(label.read("bee"), 1)
    np.testing.assert_array_equal(label.read(["cat", 0, "bee"]), [2, 0, 1])
    np.testing.assert_array_equal(label.read(np.array(["cat", "ant"])), [2, 0])
    np.testing.assert_array_equal(label.read([[0.5, 0.5, 0, 0]]), [[0.5, 0.5, 0, 0]])
    assert label.from_json("cat", "label", tmp_path) == 2
    assert label.from_json(1, "label", tmp_path) == 1
    assert label.from_json(None, "label", tmp_path) is None
    assert label.to_arrays("cat", "label", 2)["label"].tolist() == [2, 2]
    with pytest.raises(UserError, match="label=dog: expected classes, got 'dog'"):
        label.read(["ant", "dog"])


def test_a_word_that_is_a_name_is_the_name_and_this_is_said(caplog):
    label = named("1", "2", "10")
    with caplog.at_level(logging.WARNING):
        assert label.parse("10", "--label") == [2]
        assert label.parse("2,1", "--label first") == [1, 0]
    assert "--label: 10 is the class of this name, which has the number 2" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert label.read(1, "digit").tolist() == 1
        assert label.read(np.array([1, 2]), "data").tolist() == [1, 2]
    assert caplog.messages == ["digit: 1 is the number of the class 2; the class 1 has the number 0"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert named("01", "02").parse("1", "--label padded") == [1]
    assert "the class 01 has the number 0" in caplog.text


def test_numbers_are_names_where_there_are_no_others(caplog):
    for label in (ClassLabel(3, 4), named("0", "1", "2")):
        assert label.parse("2,1", "--label") == [2, 1]
        assert label.read("1").tolist() == 1
    assert not caplog.messages


@pytest.mark.parametrize("label", [ClassLabel(3, 4), named("0", "1", "2")], ids=["none", "numbers"])
def test_numbers_are_not_listed_twice(label):
    with pytest.raises(UserError, match=r"Fix: give integers from 0 to 2$"):
        label.check(np.array([3]))


@pytest.mark.parametrize("word", ["all", "none"])
def test_a_class_with_the_name_of_a_keyword_is_ambiguous(word, tmp_path):
    label = named("cat", word)
    with pytest.raises(
        UserError, match=f"--label={word}: expected an unambiguous word.*write 1 for the class"
    ):
        label.parse(word, "--label")
    assert label.parse("1", "--label") == [1]
    assert label.from_json(word, "label", tmp_path) == 1


def test_rows_of_grids_have_the_names():
    assert named(*INSECTS).describe(np.array([2, 0])) == ["cat", "ant"]
    assert named(*INSECTS).describe(np.eye(4)) is None
    assert ClassLabel(3, 4).describe(np.array([2, 0])) == ["2", "0"]


def test_names_belong_to_the_run_and_not_to_the_config():
    assert "class_names" not in spec(ClassLabel, num_classes=3, width=4)
    conditioner = Conditioner(NoiseLevel(8), {"label": ClassLabel(2, 8), "other": ClassLabel(2, 8)})
    with_names = conditioner.with_class_names(("ant", "bee"))
    assert with_names.class_names == ("ant", "bee")
    assert with_names.conditions["other"].class_names == ()
    assert conditioner.with_class_names(("ant", "bee", "cat")).class_names == ()
    assert describe(with_names.noise) == describe(conditioner.noise)


@pytest.mark.parametrize("value", [[[1.0], [2.0, 3.0]], "[" * 100 + "]" * 100])
def test_values_without_a_shape_are_one_line(value):
    conditioner = Conditioner(NoiseLevel(8), {"numbers": Continuous(2, 8)})
    given = json.loads(value) if isinstance(value, str) else value
    with pytest.raises(UserError, match=r"numbers=\.\.\.: expected values of one shape"):
        conditioner.read("numbers", given)
