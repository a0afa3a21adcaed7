"""Golden-section search: the minimum of functions with one minimum, with as many evaluations as stated."""

import math

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.sweeps.search import bounds, golden_section

GOLDEN = (math.sqrt(5) - 1) / 2


def parabola(center):
    return lambda length: math.log(length / center) ** 2


def lopsided(center):
    """Steep below the center, flat above it."""
    return lambda length: 10 * (center / length - 1) if length < center else 0.01 * (length / center - 1)


@pytest.mark.parametrize("kind", [parabola, lopsided])
@pytest.mark.parametrize("center", [0.021, 0.05, 0.11, 0.2, 0.24])
@pytest.mark.parametrize("evaluations", [2, 3, 8, 15])
def test_the_minimum_lies_in_an_interval_that_shrinks_by_the_golden_ratio(kind, center, evaluations):
    low, high = 0.02, 0.25
    found = golden_section(kind(center), low, high, evaluations)
    assert found.low * (1 - 1e-3) <= center <= found.high * (1 + 1e-3)
    assert math.log(found.high / found.low) == pytest.approx(
        math.log(high / low) * GOLDEN ** (evaluations - 1)
    )
    assert len(found.tried) <= evaluations
    assert found.best == min(found.tried, key=kind(center))
    assert found.low * (1 - 1e-3) <= found.best <= found.high * (1 + 1e-3)


def test_each_length_is_evaluated_once_and_as_it_is_printed():
    asked = []

    def value(length):
        asked.append(length)
        return parabola(0.08)(length)

    found = golden_section(value, 0.02, 0.25, 9)
    assert len(asked) == len(set(asked)) == 9
    assert all(float(f"{length:g}") == length for length in asked)
    assert f"{found.best:g}" in str(found)


@pytest.mark.parametrize("center", [0.001, 2.0])
def test_a_minimum_outside_is_approached_at_the_end(center):
    found = golden_section(parabola(center), 0.02, 0.25, 12)
    assert found.best == pytest.approx(np.clip(center, 0.02, 0.25), rel=0.02)


@pytest.mark.parametrize(
    "text", ["0.1", "0.2:0.1", "0.1:0.1", "0:0.1", "0.1:0.3", "x:0.1", "0.1:", "nan:0.1"]
)
def test_other_bounds_are_refused_by_name(text):
    with pytest.raises(UserError, match=r"^--ema-search="):
        bounds(text)


def test_bounds_are_lengths():
    assert bounds("0.02:0.25") == (0.02, 0.25)
