"""An evolutionary search for the plan with the least loss within limits, whatever the loss is.

The integer program needs losses that add up; this needs nothing but the loss of a whole plan.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from mmbitsplit.structures import Range
from mmbitsplit.structures.options import Options

Genes = tuple[int, ...]  # of each block, the number of its choice
DRAWS = 10  # a plan that is wanted: as many are drawn at most, as in the source's code
_ROUND_OFF = 1e-9


@dataclass(frozen=True)
class GeneticOptions(Options):
    """How a search goes on; the values are the source's.

    Args:
        population: Plans of the first generation.
        generations: How many follow it.
        top: Best plans so far, of which all others are made.
        mutations: Plans a generation that change some blocks of one.
        crossovers: Plans a generation that take each block from one of two.
        mutation_probability: That a block changes.
        seed: Of all draws.
    """

    population: Annotated[int, Range(1)] = 50
    generations: Annotated[int, Range(0)] = 20
    top: Annotated[int, Range(1)] = 10
    mutations: Annotated[int, Range(0)] = 25
    crossovers: Annotated[int, Range(0)] = 25
    mutation_probability: Annotated[float, Range(0, 1)] = 0.1
    seed: int = 0

    @property
    def most(self) -> int:
        """Most plans whose loss is taken."""
        return self.population + self.generations * (self.mutations + self.crossovers)


@dataclass(frozen=True)
class Evolved:
    """What a search found.

    Args:
        best: The plan with the least loss.
        loss: Of it.
        evaluated: Plans whose loss was taken.
        history: Least loss after each generation, the first population's first.
    """

    best: Genes
    loss: float
    evaluated: int
    history: tuple[float, ...]


def evolve(costs: Sequence[Sequence[Sequence[float]]], limits: Sequence[float],
           loss_of: Callable[[Genes], float], options: GeneticOptions, *,
           start: Iterable[Genes] = (), evaluations: int | None = None) -> Evolved:
    """Searches the plan with the least loss within limits.

    Args:
        costs: A table a limit, of each block at each of its choices.
        limits: Most of each cost, summed over blocks.
        loss_of: Loss of a plan; it need not add up over blocks. Taken once a plan.
        options: How.
        start: Plans within the limits that the first generation has beside those drawn.
        evaluations: Most plans whose loss is taken; ``None`` for what the options come to. Where it
            is less than that, generations are smaller, not fewer.

    Raises:
        ValueError: No plan keeps the limits.

    Source: Guo et al., *Single Path One-Shot Neural Architecture Search with Uniform Sampling*
        (ECCV 2020), Algorithm 1, with which PTMQ (AAAI 2024) searches plans. Differs from source:
        a draw beyond the limits is made to fit, blocks drawn at random taking cheaper choices;
        the source draws again, which finds nothing where limits are tight. No library for
        evolutionary search is used: what is left of it here is the loop below, and theirs bring
        selections of their own.
    """
    most = options.most if evaluations is None else max(1, evaluations)
    if most < options.most:  # as many generations, of fewer plans each
        options = replace(options, **{name: max(1, getattr(options, name) * most // options.most)
                                      for name in ('population', 'mutations', 'crossovers')})
    search = _Search(costs, limits, loss_of, options, most)
    search.add(start)
    search.add(search.draw(search.random, options.population))
    history = [search.least]
    for _ in range(options.generations):
        if search.spent:
            break
        mutated = search.draw(search.mutated, options.mutations)
        crossed = search.draw(search.crossed, options.crossovers)
        search.add((*mutated, *crossed))
        history.append(search.least)
    best = search.ranked()[0]
    return Evolved(best, search.known[best], len(search.known), tuple(history))


class _Search:
    """Plans that were looked at, and ways to draw others."""

    def __init__(self, costs: Sequence[Sequence[Sequence[float]]], limits: Sequence[float],
                 loss_of: Callable[[Genes], float], options: GeneticOptions, most: int):
        self.costs, self.loss_of, self.options, self.most = costs, loss_of, options, most
        self.limits = [limit + _ROUND_OFF * max(1.0, abs(limit)) for limit in limits]
        self.random_state = np.random.default_rng(options.seed)
        self.sizes = [len(row) for row in costs[0]]
        self.known: dict[Genes, float] = {}
        self._best: list[Genes] = []  # at the beginning of a generation

    @property
    def spent(self) -> bool:
        return len(self.known) >= self.most

    @property
    def least(self) -> float:
        return min(self.known.values())

    def ranked(self) -> list[Genes]:
        """The best first; of equal ones that which came first."""
        return sorted(self.known, key=self.known.__getitem__)

    def add(self, plans: Iterable[Genes]) -> None:
        for genes in plans:
            if genes not in self.known and not self.spent:
                self.known[genes] = self.loss_of(genes)
        self._best = self.ranked()[:self.options.top]

    def draw(self, make: Callable[[], Genes], count: int) -> list[Genes]:
        """Up to so many plans that nobody has looked at."""
        found: dict[Genes, None] = {}
        for _ in range(DRAWS * count):
            if len(found) == count:
                break
            genes = self.fitted(make())
            if genes not in self.known:
                found[genes] = None
        return list(found)

    def random(self) -> Genes:
        return tuple(int(self.random_state.integers(size)) for size in self.sizes)

    def mutated(self) -> Genes:
        changed = self.random_state.random(len(self.sizes)) < self.options.mutation_probability
        return tuple(new if change else old for old, new, change
                     in zip(self._one_of_the_best(), self.random(), changed))

    def crossed(self) -> Genes:
        first, second = self._one_of_the_best(), self._one_of_the_best()
        mine = self.random_state.random(len(self.sizes)) < 0.5
        return tuple(one if take else other for one, other, take in zip(first, second, mine))

    def _one_of_the_best(self) -> Genes:
        return self._best[int(self.random_state.integers(len(self._best)))]

    def fitted(self, genes: Genes) -> Genes:
        """The plan itself within the limits, else one with cheaper choices that is."""
        now = list(genes)
        for table, limit in zip(self.costs, self.limits):
            for block in self.random_state.permutation(len(now)) if self._over(
                    now, table, limit) else ():
                row = table[block]
                cheaper = [choice for choice in range(len(row)) if row[choice] < row[now[block]]]
                if cheaper:
                    now[block] = cheaper[int(self.random_state.integers(len(cheaper)))]
                if not self._over(now, table, limit):
                    break
        for table, limit in zip(self.costs, self.limits):  # what one limit spoils for another
            if self._over(now, table, limit):
                return self._cheapest()
        return tuple(now)

    def _cheapest(self) -> Genes:
        """Of each block the choice that costs least, in parts of the limits."""
        found = tuple(min(range(size), key=lambda choice: sum(
            table[block][choice] / limit for table, limit in zip(self.costs, self.limits)))
            for block, size in enumerate(self.sizes))
        for table, limit in zip(self.costs, self.limits):
            if self._over(found, table, limit):
                raise ValueError(f'limits: no plan was found whose costs are within '
                                 f'{", ".join(f"{one:g}" for one in self.limits)}; allow more.')
        return found

    @staticmethod
    def _over(genes: Sequence[int], table: Sequence[Sequence[float]], limit: float) -> bool:
        return sum(row[choice] for row, choice in zip(table, genes)) > limit
