"""The words of the collapse report, computed from tables made by hand."""

import pytest

from jaxdiff.sweeps.collapse import Collapse
from jaxdiff.sweeps.measures import Figure
from tests.sweeps.points import a_point

REAL = Figure(0.91, 297)


def answer(*points, real=REAL):
    return Collapse(points, real, "accuracy", "recall").answer()


def test_guidance_costs_and_an_interval_costs_less_at_the_same_accuracy():
    """0.78 of 0.91 is a loss of 14 %. 0.89 is more than 0.78 and no less than 0.91, both by the error of 297 images."""
    lines = answer(a_point(2.5, 0.998, 0.78), a_point(2.5, 0.997, 0.89, interval="0.3:3"))
    assert lines[0] == (
        "Best: guidance 2.5 with the interval 0.3 to 3, ddim, 8 steps: accuracy 0.997, recall 0.890, 98 % of real."
    )
    assert lines[1] == (
        "Guidance 2.5 costs 14 % of the diversity (recall 0.780 of real 0.910); with the interval 0.3 to 3 it costs "
        "nothing beyond the sampling error (recall 0.890) at the same accuracy within the error (0.997 and 0.998)."
    )


def test_what_is_left_of_the_cost_is_named_where_it_is_certain():
    """With 30,000 real images a loss of 3 % is beyond the error."""
    points = a_point(2.5, 0.998, 0.78, m=30_000), a_point(2.5, 0.998, 0.88, m=30_000, interval="0.3:3")
    lines = answer(*points, real=Figure(0.91, 30_000))
    assert "with the interval 0.3 to 3 it costs 3 % (recall 0.880) at the same accuracy" in lines[1]


def test_differences_within_the_error_are_no_claims():
    lines = answer(a_point(1.5, 0.998, 0.88))
    assert "no loss of diversity beyond the sampling error of ± 0.0" in lines[1]
    assert "costs" not in lines[1]
    lines = answer(a_point(2.5, 0.998, 0.78), a_point(2.5, 0.998, 0.80, rule="cads"))
    assert lines[1].endswith(
        "; nothing tried against it (settings: 1) changes that beyond the sampling error."
    )


def test_a_measure_that_costs_quality_says_so():
    lines = answer(a_point(2.5, 0.998, 0.70), a_point(2.5, 0.900, 0.90, rule="cads"))
    assert (
        "with cads it costs nothing beyond the sampling error (recall 0.900), at accuracy 0.900 instead of 0.998"
        in lines[1]
    )


def test_a_free_measure_is_named_before_a_more_diverse_one_that_costs_quality():
    lines = answer(
        a_point(2.5, 0.998, 0.70),
        a_point(2.5, 0.997, 0.85, interval="0.3:3"),
        a_point(2.5, 0.900, 0.90, rule="cads"),
    )
    assert "with the interval 0.3 to 3 it costs" in lines[1]


def test_what_is_missing_without_guidance_is_no_cost_of_guidance():
    lines = answer(a_point(1.0, 0.95, 0.60), a_point(2.0, 0.95, 0.30))
    assert "Without guidance, 34 % of the diversity of real images is missing (" in lines[1]
    assert "Guidance 2 costs" in lines[2]


def test_more_diversity_than_real_is_no_cost():
    assert "gives more diversity than real images have" in answer(a_point(1.0, 0.9, 0.99))[1]


def test_without_a_known_error_nothing_is_claimed():
    lines = answer(a_point(2.0, 0.9, 0.5, n=None, m=None), real=Figure(1.0))
    assert lines[1].endswith("Its sampling error is unknown, so this claims no difference.")
    assert "costs" not in lines[1]
    assert lines[-1].startswith("No sampling error of these figures is known")


def test_costs_are_those_of_the_sampler_and_steps_of_the_best_setting():
    other = a_point(2.5, 0.5, 0.5)
    best = a_point(2.5, 0.99, 0.78, ema=0.1)
    assert [line for line in answer(other, best) if "costs" in line] == [
        "Guidance 2.5 costs 14 % of the diversity (recall 0.780 of real 0.910)."
    ]


@pytest.mark.parametrize("n", [297, 30_000])
def test_the_error_is_stated_with_the_numbers_of_images(n):
    lines = answer(a_point(1.5, 0.99, 0.9, m=n), real=Figure(0.91, n))
    assert f"of {' and '.join(map(str, sorted((n, 1000))))} images" in lines[-1]
