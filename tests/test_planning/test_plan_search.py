"""Plans of a budget on a problem small enough to try all plans."""

import itertools
import random

import pytest

from mmbitsplit.planning.plan_search import PlanProblem, search, widest_within
from mmbitsplit.structures import Widths, WidthTable

NAMES = tuple('abcd')
CHOICES = (Widths(2), Widths(3), Widths(4), Widths(8))
PLANS = [dict(zip(NAMES, widths)) for widths in itertools.product(CHOICES, repeat=len(NAMES))]
TRIES = 40


class World:
    """Layers whose losses do not add up: some pairs are worse together than alone."""

    def __init__(self, seed, interaction=3.0):
        drawn = random.Random(seed)
        self.sizes = {name: drawn.choice([1, 3, 10]) for name in NAMES}
        self.alone = {name: {widths: drawn.random() * 4.0 ** -widths.weight
                             for widths in CHOICES} for name in NAMES}
        self.pairs = {pair: interaction * drawn.random()
                      for pair in itertools.combinations(NAMES, 2)}
        self.asked = 0
        total = sum(self.sizes.values())
        self.problem = PlanProblem(
            WidthTable({name: {widths: loss - row[Widths(8)] for widths, loss in row.items()}
                        for name, row in self.alone.items()}),
            self.loss_of(dict.fromkeys(NAMES, Widths(8))),
            {'weight_bits': WidthTable({name: {
                widths: size * widths.weight / total for widths in CHOICES}
                for name, size in self.sizes.items()})}, CHOICES)

    def loss_of(self, plan):
        self.asked += 1
        rows = {name: self.alone[name][widths] for name, widths in plan.items()}
        return sum(rows.values()) + sum(weight * (rows[one] * rows[other]) ** 0.5
                                        for (one, other), weight in self.pairs.items())


BITS = (2, 2.6, 4, 5.5)


@pytest.fixture(scope='module')
def searched():
    """Loss that a search found, of the sum's best plan, of the best uniform one, of the best."""
    rows = []
    for seed, bits in itertools.product(range(25), BITS):
        world = World(seed)
        within = [plan for plan in PLANS
                  if world.problem.costs['weight_bits'].sum(plan) <= bits + 1e-9]
        best = min(map(world.loss_of, within))
        uniform = min(world.loss_of(dict.fromkeys(NAMES, widths)) for widths in CHOICES
                      if widths.weight <= bits)
        world.asked = 0
        found = search(world.problem, {'weight_bits': bits}, world.loss_of, TRIES)
        assert world.asked <= TRIES + 2  # the sum's best plan and one uniform plan
        assert all(plan.widths in within and plan.whole == world.loss_of(plan.widths)
                   for plan in found.plans)
        assert found.plans[0].whole == min(plan.whole for plan in found.plans)
        rows.append((found.plans[0].whole, world.loss_of(found.allocation.widths), uniform, best))
    return rows


def test_never_worse_than_the_sums_plan_or_a_uniform_one(searched):
    assert all(found <= min(by_sum, uniform) for found, by_sum, uniform, _ in searched)


def test_exchanges_mostly_find_the_best_of_all_plans(searched):
    close = [found <= 1.02 * best for found, _, _, best in searched]
    by_sum = [loss <= 1.02 * best for _, loss, _, best in searched]
    assert sum(close) >= 0.9 * len(close) > sum(by_sum)


def test_one_plan_where_uniform_is_the_best():
    found = search(World(0).problem, {'weight_bits': 8}, World(0).loss_of, TRIES)
    assert [plan.name for plan in found.plans] == ['uniform W8']


def test_uniform_plans_that_another_covers_are_left_out():
    problem = World(0).problem
    pairs = tuple(Widths(weight, activation) for weight in (2, 4) for activation in (4, 8))
    table = WidthTable({name: {widths: widths.weight * widths.activation for widths in pairs}
                        for name in NAMES})
    problem = PlanProblem(table, 0.0, {'bitops': table}, pairs)
    assert list(widest_within(problem, {'bitops': 16 * len(NAMES)})) == [Widths(2, 8), Widths(4, 4)]
    assert list(widest_within(problem, {'bitops': 33 * len(NAMES)})) == [Widths(4, 8)]
    mixed_inputs = PlanProblem(WidthTable({**table.layers, 'a': {Widths(4, 8): 1.0}}), 0.0,
                               {'bitops': table}, pairs, [frozenset('ab')])
    assert list(widest_within(mixed_inputs, {'bitops': 1e9})) == [Widths(4, 8)]


def test_a_budget_that_cannot_be_kept_says_what_can():
    with pytest.raises(ValueError, match='weight_bits from 2 to 8'):
        search(World(0).problem, {'weight_bits': 1.5}, World(0).loss_of, TRIES)


def test_without_exchanges_the_better_of_both_beginnings_is_taken():
    """The integer program's plan, which is the worse of the two in some of these worlds."""
    worse = 0
    for seed in range(60):
        world = World(seed, interaction=30.0)
        uniform = world.loss_of(dict.fromkeys(NAMES, Widths(3)))
        found = search(world.problem, {'weight_bits': 3}, world.loss_of, 0)
        by_sum = world.loss_of(found.allocation.widths)
        worse += uniform < by_sum
        assert found.plans[0].whole == min(uniform, by_sum)
    assert worse
