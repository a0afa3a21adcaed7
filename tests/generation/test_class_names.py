"""Generators read classes by name, and models that share labels must number their classes alike."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.generation import preview
from jaxdiff.generation.cascade import Cascade
from tests.generation import test_cascade, test_generator

NAMES = ("ant", "bee", "cat", "dog", "10")


def named(generator, names):
    return dataclasses.replace(generator, denoiser=generator.denoiser.with_class_names(names))


def test_names_in_python_are_numbers_of_the_table():
    generator = named(test_generator.a_generator(), NAMES)
    by_number = generator(label=[2, None, 4], negative={"label": 1}, guidance=2.0)
    by_name = generator(label=["cat", None, "10"], negative={"label": "bee"}, guidance=2.0)
    np.testing.assert_array_equal(by_name, by_number)
    with pytest.raises(UserError, match=r"label=cow: expected classes, got 'cow'.*ant=0, bee=1"):
        generator(label="cow")


def test_names_change_no_parameter():
    plain = test_generator.a_generator()
    np.testing.assert_array_equal(named(plain, NAMES)(label=[3, 1]), plain(label=[3, 1]))


def test_a_guiding_model_with_other_classes_is_refused():
    model, weak = test_generator.a_generator(), test_generator.a_generator()
    with pytest.raises(
        UserError, match=r"guiding_model='ant, cat.*expected models with the same classes, ant, bee"
    ):
        named(model, NAMES).guided_by(named(weak, ("ant", "cat", "bee", "dog", "10")))
    named(model, NAMES).guided_by(named(weak, NAMES))
    named(model, NAMES).guided_by(weak)


def test_stages_of_a_cascade_share_their_classes():
    stages = test_cascade.base(), test_cascade.larger()
    Cascade([named(stage, ("a", "b", "c")) for stage in stages])
    with pytest.raises(UserError, match=r"stages='b, a, c': expected models with the same classes, a, b, c"):
        Cascade([named(stages[0], ("a", "b", "c")), named(stages[1], ("b", "a", "c"))])


def test_rows_of_sample_grids_are_named(monkeypatch):
    rows = []
    monkeypatch.setattr(
        preview.images, "grid", lambda images, columns, row_labels: rows.extend(row_labels) or images[0]
    )
    preview.sample_grid(named(test_generator.a_generator(), NAMES), None, columns=2)
    assert rows == list(NAMES)
