"""Simulated goodput against counting by hand, renewal theory, and the formulas of Young and Daly."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from jaxdiff.cost.goodput import (
    PUBLISHED,
    Times,
    compare,
    expected_goodput,
    failures,
    published_mtbf,
    simulate,
    young_daly,
)
from jaxdiff.errors import UserError

HOUR = 3600.0
BLOCKING = Times(step=0.5, save=20, write=0, restore=30, start=90)


def test_one_attempt_counted_by_hand():
    """Restart until 10, steps until 20, save until 22, complete at 25; steps until 32, save until 34, ..."""
    times = Times(step=1, save=2, write=3, restore=4, start=6)
    for gap, kept, lost, saving, restarting in (
        (8, 0, 0, 0, 8),
        (15, 0, 5, 0, 10),
        (21, 0, 10, 1, 10),
        (24, 0, 12, 2, 10),
        (25, 10, 3, 2, 10),
        (36.5, 10, 12.5, 4, 10),
        (37, 20, 3, 4, 10),
    ):
        found = simulate(times, 10, [gap])
        np.testing.assert_allclose(found, np.array([kept, lost, saving, restarting]) / gap, atol=1e-12)


def test_a_save_waits_for_the_one_before():
    """Each write takes 30 after its save: complete at 42, and then not before 42 + 2 + 30."""
    times = Times(step=1, save=2, write=30, restore=0, start=0)
    assert simulate(times, 10, [73.9]).goodput == pytest.approx(10 / 73.9)
    assert simulate(times, 10, [74]).goodput == pytest.approx(20 / 74)
    assert simulate(times, 10, [74]).saving == pytest.approx((2 + 20 + 2 + 20) / 74)


def test_fractions_add_up_and_at_most_two_intervals_are_lost_by_a_failure():
    times = Times(step=0.3, save=1, write=20, restore=5, start=40)
    gaps = failures(900, 300, seed=3)
    for every in (1, 10, 100, 1000):
        found = simulate(times, every, gaps)
        assert sum(found) == pytest.approx(1)
        assert min(found) >= 0
        if every * times.step >= times.write:
            assert found.lost * gaps.sum() <= 2 * every * times.step * len(gaps)


@pytest.mark.parametrize("write", [0.0, 100.0, 3000.0])
@pytest.mark.parametrize("every", [200, 2000, 20_000])
def test_the_simulation_agrees_with_renewal_theory(write, every):
    times = Times(step=0.5, save=20, write=write, restore=30, start=90)
    found = [simulate(times, every, failures(2 * HOUR, 400, seed)).goodput for seed in range(16)]
    error = np.std(found, ddof=1) / 4
    assert abs(np.mean(found) - expected_goodput(times, every, 2 * HOUR)) < 4 * error
    assert error < 0.01


@pytest.mark.parametrize("every", [100, 3000, 100_000])
def test_without_background_writes_the_closed_form_is_dalys(every):
    mtbf, train = 3 * HOUR, every * BLOCKING.step
    cycle = mtbf * math.exp(BLOCKING.restart / mtbf) * math.expm1((train + BLOCKING.save) / mtbf)
    assert expected_goodput(BLOCKING, every, mtbf) == pytest.approx(train / cycle)


@pytest.mark.parametrize("mtbf", [HOUR, 24 * HOUR])
def test_the_best_interval_is_lamberts_and_to_first_order_young_and_dalys(mtbf):
    fine = Times(step=1e-3, save=20, write=0, restore=30, start=90)
    best = minimize_scalar(
        lambda train: -expected_goodput(fine, round(train / fine.step), mtbf),
        bounds=(10, mtbf),
        method="bounded",
    ).x
    exact = mtbf * (1 + lambertw(-math.exp(-1 - fine.save / mtbf)).real)
    first_order = young_daly(fine.save, mtbf)
    assert best == pytest.approx(exact, rel=1e-2)
    assert abs(first_order / exact - 1) < math.sqrt(fine.save / mtbf)


@pytest.mark.spread(1)
@pytest.mark.parametrize("devices", [size for size, _ in PUBLISHED])
def test_the_best_simulated_interval_costs_little_over_the_exact_one(devices):
    mtbf = published_mtbf(devices)
    rows = compare(BLOCKING, mtbf, also=(7,))
    assert 7 in [row.checkpoint_every for row in rows]
    assert [row.checkpoint_every for row in rows] == sorted({row.checkpoint_every for row in rows})
    chosen = max(rows, key=lambda row: row.simulated.goodput).checkpoint_every
    best = max(
        expected_goodput(BLOCKING, every, mtbf) for every in np.unique(np.geomspace(1, 1e5, 400).astype(int))
    )
    assert expected_goodput(BLOCKING, chosen, mtbf) > best - 0.01


def test_published_times_between_failures():
    """7.9 hours at 1,024 accelerators, 1.8 at 16,384, and 14 minutes at 131,072."""
    assert published_mtbf(1024) == pytest.approx(7.9 * HOUR)
    assert published_mtbf(16_384) == pytest.approx(1.8 * HOUR)
    assert published_mtbf(131_072) == pytest.approx(840)
    sizes = [1, 8, 512, 1024, 3000, 16_384, 50_000, 131_072, 1_000_000]
    assert all(a > b for a, b in itertools.pairwise(map(published_mtbf, sizes)))
    assert published_mtbf(256) == pytest.approx(4 * published_mtbf(1024))
    assert published_mtbf(262_144) == pytest.approx(420)


def test_failures_follow_from_the_seed():
    assert np.array_equal(failures(100, 50, 1), failures(100, 50, 1))
    assert not np.array_equal(failures(100, 50, 1), failures(100, 50, 2))
    assert np.mean(failures(100, 40_000)) == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize(
    "changed", [{"step": 0}, {"save": 0}, {"write": -1}, {"restore": math.inf}, {"start": -1}]
)
def test_times_that_are_none_are_refused(changed):
    with pytest.raises(UserError, match=next(iter(changed))):
        Times(**{"step": 1, "save": 1, "write": 1, "restore": 1, "start": 1} | changed)
    with pytest.raises(UserError, match="checkpoint_every"):
        simulate(BLOCKING, 0, [1])
    with pytest.raises(UserError, match="--devices"):
        published_mtbf(0)
