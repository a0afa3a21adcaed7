"""Pareto fronts against their definition, and the choice of a setting."""

import numpy as np
import pytest

from jaxdiff.sweeps.pareto import CHOICES, front
from tests.sweeps.points import a_point


@pytest.mark.parametrize("seed", range(20))
def test_a_front_is_what_no_other_pair_dominates(seed):
    """Small whole numbers, so that there are ties in each of the two and equal pairs."""
    pairs = [tuple(pair) for pair in np.random.default_rng(seed).integers(0, 6, (30, 2)).tolist()]

    def dominated(a):
        return any(b[0] >= a[0] and b[1] >= a[1] and b != a for b in pairs)

    assert front(pairs) == [not dominated(pair) for pair in pairs]


def test_a_front_of_one_pair_and_of_none():
    assert front([(1.0, 2.0)]) == [True]
    assert front([]) == []


GOOD = a_point(1.5, 0.998, 0.80, seconds=0.004)
DIVERSE = a_point(1.5, 0.996, 0.90, interval="0.3:3", seconds=0.003)
POOR = a_point(1.0, 0.900, 0.92, seconds=0.001)
QUICK = a_point(1.5, 0.997, 0.89, interval="0.2:2", seconds=0.002)


@pytest.mark.parametrize(
    ("choice", "expected"), [("best-quality", DIVERSE), ("best-diversity", QUICK), ("fastest", QUICK)]
)
def test_choices_take_differences_within_the_error_for_none(choice, expected):
    """0.996 of 1000 is not worse than 0.998, 0.900 is; recall 0.89 of 297 is not worse than 0.92, 0.80 is."""
    assert CHOICES[choice]([GOOD, DIVERSE, POOR, QUICK]) == expected


def test_choices_of_figures_without_an_error_are_the_best_values():
    points = [a_point(scale, 1 - scale / 10, scale / 10, n=None, m=None) for scale in (1, 2, 3)]
    assert CHOICES["best-quality"](points) == points[0]
    assert CHOICES["best-diversity"](points) == points[2]
