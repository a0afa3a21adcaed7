import pytest

from jaxdiff.errors import UserError
from jaxdiff.training.retention import Retention, Saved


def saved(*values, minutes=10):
    """A checkpoint every 100 steps and every few minutes, with these values."""
    return [Saved(100 * i, 60.0 * minutes * i, value) for i, value in enumerate(values, 1)]


def test_multiples_of_a_number_of_steps_stay():
    assert Retention(every_steps=200).kept(saved(*[None] * 5)) == {200, 400}


def test_checkpoints_at_least_so_many_minutes_apart_stay():
    assert Retention(every_minutes=25).kept(saved(*[None] * 8)) == {100, 400, 700}


def test_deleting_the_others_changes_nothing_that_stays():
    every = Retention(every_minutes=25, every_steps=200, best="x")
    all_of_them = saved(3.0, 1.0, None, 2.0, 1.0, 9.0, 8.0, 5.0)
    kept = every.kept(all_of_them)
    assert every.kept([each for each in all_of_them if each.step in kept]) == kept


@pytest.mark.parametrize(("better", "count", "steps"), [("lower", 2, [200, 400]), ("higher", 1, [300])])
def test_the_best_stay_and_of_equal_ones_the_earlier(better, count, steps):
    retention = Retention(best="fid", best_count=count, better=better)
    found = [each.step for each in retention.ranked(saved(5.0, 1.0, 7.0, 2.0, 2.0, None))]
    assert found == steps


def test_without_rules_nothing_else_stays():
    assert Retention().kept(saved(1.0, 2.0)) == set()


@pytest.mark.parametrize("field", ["every_steps", "every_minutes", "best_count"])
def test_numbers_are_positive(field):
    with pytest.raises(UserError, match=f"{field}=0"):
        Retention(**{field: 0})
