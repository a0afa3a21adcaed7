"""When figures differ: against the interval of Agresti and Caffo, and its coverage of true differences."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.accuracy import Accuracy
from jaxdiff.evaluation.metrics.memorization import Memorization
from jaxdiff.evaluation.metrics.precision_recall import PrecisionRecall
from jaxdiff.sweeps.measures import (
    DIVERSITY,
    QUALITY,
    Figure,
    Measure,
    counts,
    differ,
    half_width,
    measure,
    worse,
)


def test_the_error_is_that_of_agresti_and_caffo():
    """Both of 10, 10 and 0: 11/12 and 1/12, each with variance 11/12 / 12^2."""
    assert half_width(Figure(1.0, 10), Figure(0.0, 10)) == pytest.approx(1.959964 * np.sqrt(2 * 11 / 12**3))
    assert half_width(Figure(1.0, 10), Figure(0.5)) is None


def test_equal_fractions_are_found_to_differ_in_about_a_twentieth_of_draws():
    generator = np.random.default_rng(0)
    draws = generator.binomial(300, 0.9, (2000, 2)) / 300
    found = [differ(*(Figure(float(value), 300) for value in pair)) for pair in draws]
    assert 0.03 < np.mean(found) < 0.07


def test_distant_fractions_differ_and_the_lower_is_worse():
    low, high = Figure(0.78, 297), Figure(0.91, 297)
    assert differ(low, high)
    assert worse(low, high)
    assert not worse(high, low)
    assert worse(Figure(3.0, None, False), Figure(2.0, None, False)), "a distance is worse when it is higher"


def test_without_an_error_nothing_is_known_but_equality():
    assert differ(Figure(1.0), Figure(2.0)) is None
    assert differ(Figure(1.0), Figure(1.0)) is False


VALUES = {"accuracy": None, "precision": 0.9, "frechet": 2.0, "spread": {"minimum": 0.5}, "exact": True}


def test_measures_are_the_first_that_exist_or_those_named():
    assert measure("--quality", None, QUALITY, VALUES) == Measure("precision", True)
    assert measure("--diversity", None, DIVERSITY, VALUES) == Measure("spread.minimum", True)
    assert measure("--quality", "frechet", QUALITY, VALUES) == Measure("frechet", False)
    assert measure("--quality", "spread.minimum:lower", QUALITY, VALUES) == Measure("spread.minimum", False)


@pytest.mark.parametrize(
    ("path", "higher"),
    [
        ("kid.value", False),
        ("cmmd.value", False),
        ("class_frechet.worst", False),
        ("colour_shift.largest", False),
        ("memorization.exact_copies", False),
        ("fd_dinov2", False),
        ("distance_to_truth", False),
        ("memorization.ratio", True),
        ("intra_class.least", True),
        ("psnr", True),
        ("ssim", True),
    ],
)
def test_distances_and_errors_are_better_where_they_are_lower(path, higher):
    values = 0.5
    for part in reversed(path.split(".")):
        values = {part: values}
    assert measure("--quality", path, QUALITY, values) == Measure(path, higher)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "recall",
            "--quality='recall': expected a number of the evaluation, got recall. Fix: name one of frechet",
        ),
        ("precision:up", "--quality='precision:up': expected NAME, NAME:higher or NAME:lower, got up"),
    ],
)
def test_an_unknown_measure_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        measure("--quality", text, QUALITY, VALUES)


def test_fractions_are_of_samples_or_of_the_reference_of_their_metric():
    metrics = (Accuracy(), PrecisionRecall(reference="train"), Memorization())
    found = counts(metrics, 100, {"train": 1500, "test": 297})
    assert (found["accuracy"], found["recall"], found["coverage"]) == (100, 100, 100)
    assert counts(metrics, 5000, {"train": 1500, "test": 297})["recall"] == 1500
    assert "recall" not in counts((Accuracy(),), 100, {"train": 1500, "test": 297})
