"""Seconds that are left are guessed from units that are learned, not from those that are not."""

import pytest

from mmbitsplit.calibration.unit_times import OFTEN, UnitTimes
from mmbitsplit.structures import Unit

COSTS = {'a': 100.0, 'b': 300.0, 'c': 50.0, 'd': 400.0}


@pytest.fixture
def times():
    told, now = [], [0.0]
    return UnitTimes([Unit(name, (name,), (name,)) for name in COSTS], COSTS, told.append,
                     clock=lambda: now[0]), told, now


def test_seconds_left_follow_from_what_was_done(times):
    times, told, _ = times
    times.tell('a', 1, 100, 7.0)
    assert told.pop().seconds_left is None  # too early to say
    times.tell('a', 1, 4, 2.5)
    times.finish('a', 10.0, learned=True)
    times.finish('c', 0.0, learned=False)
    times.tell('b', 5, 10, 15.0)
    assert [(step.unit, step.done, step.total, step.units_done, step.units) for step in told] == [
        ('a', 1, 4, 0, 4), ('b', 5, 10, 2, 4)]
    # A tenth of a second for one of the work; three quarters of a, and b, c, d are left.
    assert told[0].seconds_left == pytest.approx(0.1 * (75 + 750))
    assert told[1].seconds_left == pytest.approx(0.1 * (150 + 400))


def test_steps_are_told_now_and_then_and_the_last_once(times):
    times, _, now = times
    assert times.due(1, 10) and not times.due(2, 10)
    now[0] = OFTEN
    assert times.due(3, 10) and not times.due(4, 10)
    assert times.due(10, 10) and not times.due(10, 10)  # extra steps come after the last
    assert not times.due(1, 10)
