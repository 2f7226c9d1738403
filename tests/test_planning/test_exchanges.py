"""Neighbours of a plan: all that brute force finds, the least sum first, and what comes of them."""

import itertools
import random

import pytest

from mmbitsplit.planning.exchanges import exchanges, refine
from mmbitsplit.structures import Widths, WidthTable

NAMES = tuple('abcd')
CHOICES = (Widths(2), Widths(4), Widths(8))
PLANS = [dict(zip(NAMES, widths)) for widths in itertools.product(CHOICES, repeat=len(NAMES))]


def tables(seed):
    """Losses, costs of two kinds, and a plan with room for neither to double."""
    drawn = random.Random(seed)
    sizes = {name: drawn.choice([1, 3, 10]) for name in NAMES}
    losses = WidthTable({name: {widths: drawn.random() / widths.weight ** 2 for widths in CHOICES}
                         for name in NAMES})
    costs = {what: WidthTable({name: {widths: sizes[name] * (widths.weight + extra)
                                      for widths in CHOICES} for name in NAMES})
             for what, extra in (('bytes', 0), ('bitops', drawn.random()))}
    plan = drawn.choice(PLANS)
    limits = {what: 1.1 * table.sum(plan) for what, table in costs.items()}
    return losses, costs, plan, limits


def within(plan, costs, limits):
    return all(costs[what].sum(plan) <= limit * (1 + 1e-9) for what, limit in limits.items())


def changes(one, other):
    return {name for name in NAMES if one[name] != other[name]}


@pytest.mark.parametrize('seed', range(20))
def test_neighbours_are_all_exchanges_within_the_limits(seed):
    losses, costs, plan, limits = tables(seed)
    found = list(exchanges(plan, losses, costs, limits))
    sums = [losses.sum(neighbour) for neighbour in found]
    assert all(after > before - 1e-12 for before, after in zip(sums, sums[1:]))

    def is_exchange(other):
        moved = {name: {what: costs[what].layers[name][other[name]]
                        - costs[what].layers[name][plan[name]] for what in costs}
                 for name in changes(plan, other)}
        if len(moved) == 1:
            return any(change > 0 for change in next(iter(moved.values())).values())
        one, two = moved.values()
        return any(one[what] * two[what] < 0 for what in costs)

    wanted = [other for other in PLANS if 1 <= len(changes(plan, other)) <= 2
              and within(other, costs, limits) and is_exchange(other)]
    assert len(found) == len(wanted) and all(other in found for other in wanted)


def test_inputs_that_are_shared_change_together():
    pairs = [Widths(weight, activation) for weight in (2, 8) for activation in (4, 8)]
    losses = WidthTable({name: {widths: 1 / (widths.weight * widths.activation)
                                for widths in pairs} for name in NAMES})
    costs = {'bitops': WidthTable({name: {widths: widths.weight * widths.activation
                                          for widths in pairs} for name in NAMES})}
    plan = {**dict.fromkeys(NAMES, Widths(2, 8)), 'c': Widths(8, 4)}
    found = list(exchanges(plan, losses, costs, {'bitops': 120.0}, [frozenset('ab')]))
    assert all(other['a'].activation == other['b'].activation for other in found)
    assert {**plan, 'a': Widths(2, 4), 'b': Widths(2, 4), 'c': Widths(8, 8)} in found
    assert {**plan, 'a': Widths(8, 8), 'c': Widths(2, 4)} in found  # weights are free
    assert all(sum(costs['bitops'].layers[name][widths] for name, widths in other.items()) <= 120
               for other in found)


def test_exchanges_find_what_the_sum_does_not_know():
    """Two layers that are harmless alone and ruin each other together: the sum's best plan."""
    losses, costs, _, _ = tables(3)
    limits = {'bytes': costs['bytes'].sum(dict.fromkeys(NAMES, Widths(4)))}
    feasible = [plan for plan in PLANS if within(plan, costs, limits)]
    start = min(feasible, key=losses.sum)
    narrow = [name for name in NAMES if start[name] == Widths(2)]
    asked = []

    def loss_of(plan):
        asked.append(plan)
        return losses.sum(plan) + 5.0 * all(plan[name] == Widths(2) for name in narrow)

    def around(plan):
        return exchanges(plan, losses, costs, limits)

    found = refine(start, loss_of(start), loss_of, around, 40)
    assert found.loss == loss_of(found.plan) < 1 < loss_of(start)
    assert within(found.plan, costs, limits) and found.taken >= 1 and found.tried <= 40
    assert found.loss == pytest.approx(min(map(loss_of, feasible)), rel=0.05)
    asked.clear()
    assert refine(start, loss_of(start), loss_of, around, 0).plan == start and len(asked) == 1
