"""The genetic search against brute force and the integer program."""

import itertools

import numpy as np
import pytest

from mmbitsplit.planning.allocation import allocate
from mmbitsplit.planning.genetic_search import GeneticOptions, evolve
from mmbitsplit.structures import Widths, WidthTable

CHOICES = [Widths(bits) for bits in (2, 3, 4, 6, 8)]


def _additive(blocks: int, seed: int):
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 500, blocks)
    costs = [[float(size * widths.weight) for widths in CHOICES] for size in sizes]
    losses = [[float(scale * 2.0 ** (-2 * widths.weight) * random.uniform(0.7, 1.3))
               for widths in CHOICES] for scale in random.lognormal(0, 2, blocks)]
    return losses, costs


def _optimum(losses, costs, limit):
    table, sizes = (WidthTable({f'b{number}': dict(zip(CHOICES, row))
                                for number, row in enumerate(rows)}) for rows in (losses, costs))
    return allocate(table, {'bytes': sizes}, {'bytes': limit}, gap=0.0)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_it_reaches_the_optimum_of_an_additive_problem_and_never_beats_it(seed):
    losses, costs = _additive(7, seed)
    limit = 4.0 * sum(row[0] / 2 for row in costs)
    wanted = _optimum(losses, costs, limit)

    found = evolve([costs], [limit], lambda genes: sum(
        row[gene] for row, gene in zip(losses, genes)), GeneticOptions(seed=seed))

    assert found.loss >= wanted.loss * (1 - 1e-9)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-9)
    assert sum(row[gene] for row, gene in zip(costs, found.best)) <= limit


def test_a_loss_that_does_not_add_up_is_minimized_where_the_program_is_misled():
    # Two blocks that are harmless alone and harmful together.
    losses, costs = [[1.0, 0.9, 0.0], [1.0, 0.9, 0.0], [2.0, 1.5, 0.0]], [[1.0, 2.0, 3.0]] * 3

    def loss(genes):
        return sum(row[gene] for row, gene in zip(losses, genes)) + 5.0 * (genes[:2] == (0, 0))

    possible = [genes for genes in itertools.product(range(3), repeat=3) if sum(genes) + 3 <= 6]
    found = evolve([costs], [6.0], loss, GeneticOptions())
    assert found.loss == min(map(loss, possible)) < loss((0, 0, 2))


def test_one_seed_gives_one_search_and_no_plan_is_looked_at_twice_or_beyond_limits():
    losses, costs = _additive(12, 5)
    second = [[cost ** 1.2 for cost in row] for row in costs]
    limits = [3.0 * sum(row[0] / 2 for row in costs), 0.6 * sum(row[-1] for row in second)]
    seen: list = []

    def run():
        seen.clear()

        def loss(genes):
            seen.append(genes)
            return sum(row[gene] for row, gene in zip(losses, genes))
        found = evolve([costs, second], limits, loss, GeneticOptions(seed=3), evaluations=200)
        return found, list(seen)

    first, again = run(), run()
    assert first == again
    assert 150 < len(first[1]) == len(set(first[1])) == first[0].evaluated <= 200
    assert all(sum(row[gene] for row, gene in zip(table, genes)) <= limit * (1 + 1e-6)
               for genes in first[1] for table, limit in zip([costs, second], limits))
    assert list(first[0].history) == sorted(first[0].history, reverse=True)


def test_it_begins_at_plans_that_are_given():
    losses, costs = _additive(10, 8)
    limit = 4.0 * sum(row[0] / 2 for row in costs)
    plan = _optimum(losses, costs, limit).widths
    start = tuple(CHOICES.index(plan[f'b{number}']) for number in range(10))
    found = evolve([costs], [limit], lambda genes: sum(
        row[gene] for row, gene in zip(losses, genes)), GeneticOptions(), start=[start],
        evaluations=20)
    assert found.best == start


def test_limits_that_nothing_keeps_are_refused():
    with pytest.raises(ValueError, match='no plan was found whose costs are within 1'):
        evolve([[[2.0, 3.0]]], [1.0], lambda genes: 0.0, GeneticOptions())
