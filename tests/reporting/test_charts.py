"""Charts: positions follow the values, peaks survive, and gaps stay gaps."""

import re

import numpy as np
import pytest

from jaxdiff.reporting.charts import MOST, Series, chart, thinned
from tests.reporting.reading import read


def drawn(points, **options):
    """The positions of the line of one series."""
    text = chart("title", ("x", "y"), [Series("name", points)], **options)
    (path,) = read(text).all("path")
    return np.array(
        [
            [float(word) for word in pair]
            for pair in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path.attributes["d"])
        ]
    )


def test_equal_steps_are_equal_distances():
    places = drawn([(0.0, 1.0), (10.0, 2.0), (20.0, 3.0)])
    np.testing.assert_allclose(places[1] - places[0], places[2] - places[1], atol=0.02)
    assert places[1][0] > places[0][0]
    assert places[1][1] < places[0][1], "larger values stand higher"


def test_values_of_several_decades_have_a_logarithmic_axis():
    places = drawn([(0.0, 0.001), (1.0, 0.1), (2.0, 10.0)])
    np.testing.assert_allclose(places[1] - places[0], places[2] - places[1], atol=0.02)


def test_a_level_stands_where_its_value_does():
    text = chart("title", ("x", "y"), [Series("name", [(0.0, 1.0), (1.0, 3.0)])], level=("real", 2.0))
    (line,) = read(text).of_class("level")
    places = drawn([(0.0, 1.0), (1.0, 3.0)], level=("real", 2.0))
    assert float(line.attributes["y1"]) == pytest.approx(places[:, 1].mean(), abs=0.02)


def test_values_that_are_not_positive_are_drawn():
    assert len(drawn([(0.0, 0.0), (1.0, 100.0)])) == 2
    assert len(drawn([(0.0, -5.0), (1.0, 100.0)])) == 2
    assert len(drawn([(0.0, 2.0)])) == 1


def test_without_a_finite_value_there_is_a_sentence():
    assert "no finite value" in read(chart("title", ("x", "y"), [Series("name", [(0.0, None)])])).text


def test_a_long_curve_keeps_every_peak_and_gap():
    generator = np.random.default_rng(0)
    values = generator.normal(size=50_000)
    values[[7, 30_001]] = 100.0, -100.0
    points = [(float(i), float(value)) for i, value in enumerate(values)]
    points[20_000] = (20_000.0, None)
    found = thinned(points)
    assert len(found) <= MOST
    assert {points[7], points[30_001], points[20_000]} <= set(found)
    assert list(found) == sorted(found, key=lambda point: point[0])
    assert set(found) <= set(points)


def test_each_point_has_its_text():
    series = Series("name", [(1.0, 2.0), (3.0, 4.0)], ("first <b>", "second"), marks=True)
    titles = read(chart("title", ("x", "y"), [series])).all("title")
    assert [title.text for title in titles] == ["first <b>", "second"]


def test_a_long_curve_keeps_zeros():
    values = np.full(10_000, 0.5)
    values[3000:3100], values[3050], values[3051] = 0.4, 0.0, 0.6
    points = [(float(i), float(value)) for i, value in enumerate(values)]
    assert {points[3050], points[3051]} <= set(thinned(points))
