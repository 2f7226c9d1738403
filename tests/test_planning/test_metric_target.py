"""The smallest size that holds, against trying all."""

import pytest

from mmbitsplit.planning.metric_target import levels_for, smallest_that_holds


def search(levels, first, evaluations):
    """What is found where ``first`` and all above hold, and what was asked for."""
    asked = []

    def holds(level):
        asked.append(level)
        return level >= first

    return smallest_that_holds(levels, holds, lambda: evaluations - len(asked)), asked


@pytest.mark.parametrize('evaluations', [1, 2, 3, 6])
def test_as_many_evaluations_tell_all_levels_apart(evaluations):
    levels = levels_for(evaluations)
    for first in range(levels + 1):  # none holds in the last round
        found, asked = search(levels, first, evaluations)
        assert len(asked) <= evaluations and len(set(asked)) == len(asked)
        assert found == (None if first == levels else first)
        if found is None:
            assert asked[-1] == levels - 1  # the largest had its chance


def test_models_seen_before_cost_nothing():
    """Sizes that lead to the same model: more levels than evaluations, and all are told apart."""
    seen = set()

    def holds(level):
        seen.add(level // 9)
        return level // 9 >= 2

    assert smallest_that_holds(63, holds, lambda: 4 - len(seen)) == 18
