"""Interleaved sequences: each item comes once, and each sequence is spread evenly."""

import numpy as np
import pytest

from jaxdiff.data.interleaving import Interleaved, locate

COUNTS = (5, 1, 12, 3)


@pytest.mark.parametrize("phases", [(), (0.0, 0.0, 0.0, 0.0), (0.3, 0.99, 0.5, 0.0), (0.999,) * 4])
def test_each_item_of_each_sequence_comes_once_and_in_order(phases):
    found = [locate(i, COUNTS, phases) for i in range(sum(COUNTS))]
    for origin, count in enumerate(COUNTS):
        assert [position for each, position in found if each == origin] == list(range(count))


def test_a_single_item_comes_where_its_phase_says():
    """So that the images of a rare bucket are as likely early as late, over seeds."""
    places = [
        next(i for i in range(100) if locate(i, (1, 99), (phase, 0.0))[0] == 0)
        for phase in (np.arange(100) + 0.5) / 100
    ]
    assert sorted(places) == list(range(100))


def test_an_endless_sequence_repeats_its_period_with_the_next_items():
    endless = [range(10**6 * origin, 10**6 * (origin + 1)) for origin in range(4)]
    merged = Interleaved(endless, COUNTS, 7)
    rows = np.array([merged[i] for i in range(3 * sum(COUNTS))]).reshape(3, -1)
    origins = rows // 10**6
    assert np.array_equal(origins[0], origins[1])
    for origin, count in enumerate(COUNTS):
        assert rows[origins == origin].tolist() == list(endless[origin][: 3 * count])


def test_rare_sequences_begin_at_another_place_for_each_seed():
    places = set()
    for seed in range(20):
        merged = Interleaved([range(0, 10**6), range(10**6, 2 * 10**6)], (1, 99), seed)
        places.add(next(i for i in range(100) if merged[i] < 10**6))
    assert len(places) > 10
