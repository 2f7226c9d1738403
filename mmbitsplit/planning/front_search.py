"""Plans of several budgets of a model with several widths, each measured as a whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mmbitsplit.planning.allocation import allocate, front, possible
from mmbitsplit.planning.block_losses import BlockLosses
from mmbitsplit.planning.genetic_search import Genes, GeneticOptions, evolve
from mmbitsplit.planning.plan_search import PlanProblem, uniform_name, widest_within
from mmbitsplit.planning.width_blocks import plan_of_blocks
from mmbitsplit.structures import Widths
from mmbitsplit.structures.plan_choice import UNIFORM, PlanFound
from mmbitsplit.structures.plan_front import FrontPlan, measured_of

PROGRAM, GENETIC = 'program', 'genetic'
Search = Literal['program', 'genetic', 'both']
Plan = Mapping[str, Widths]
FRONT = 13  # budgets of the line by the integer program


@dataclass
class FrontSearch:
    """Searches plans within budgets.

    Args:
        problem: Losses of blocks, and costs.
        losses: Measures plans.
        search: ``'program'``, ``'genetic'`` or ``'both'``; with both, the evolutionary search
            begins at the program's plan and at uniform ones, too.
        genetic: Options of the evolutionary search.
        evaluations: Most plans that it measures a budget; ``None`` for what its options come to.
        tell: Told that a plan of the evolutionary search has been looked at.
    """

    problem: PlanProblem
    losses: BlockLosses
    search: Search
    genetic: GeneticOptions
    evaluations: int | None
    tell: Callable[[], None] = lambda: None
    _seen: dict[frozenset, tuple[Plan, float]] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """Most plans that a budget's evolutionary search measures."""
        if self.search == PROGRAM:
            return 0
        return self.genetic.most if self.evaluations is None else self.evaluations

    def uniform(self) -> list[FrontPlan]:
        """All uniform plans."""
        return [self._plan(self._found(uniform_name(widths), plan), UNIFORM)
                for widths, plan in self.problem.uniform().items()]

    def within(self, budget: str, limits: Mapping[str, float]) -> list[FrontPlan]:
        """The plans of a budget, a kind of search each; the one with the least loss is marked.

        Sums mislead most where a block alone at few bits loses more than among others that have
        as few, which its codes were solved for. So a uniform plan within the limits that loses
        less than what the program has found is the budget's, too; the evolutionary search begins
        at such plans.

        Args:
            budget: Its name.
            limits: Most of some costs.

        Raises:
            ValueError: See ``allocate``.
        """
        found, start = [], []
        if self.search != GENETIC:
            program = allocate(self.problem.losses, self.problem.costs, limits).widths
            found.append(self._plan(self._found(f'{PROGRAM} {budget}', program), PROGRAM, budget))
            start = [program, *widest_within(self.problem, limits).values()]
        if self.search != PROGRAM:
            found.append(self._plan(self._found(
                f'{GENETIC} {budget}', self._evolved(limits, start)), GENETIC, budget))
        if self.search == PROGRAM:
            found += self._better_uniform(budget, limits, found[0])
        min(found, key=lambda one: measured_of(one.found)).best = True
        return found

    def _better_uniform(self, budget: str, limits: Mapping[str, float], than: FrontPlan,
                        ) -> list[FrontPlan]:
        """The uniform plan within limits that loses least, if that is less than another plan."""
        fitting = widest_within(self.problem, limits)
        best = min(fitting, key=lambda widths: self._loss(fitting[widths]), default=None)
        if best is None or self._loss(fitting[best]) >= measured_of(than.found):
            return []
        return [self._plan(self._found(f'{uniform_name(best)} in {budget}', fitting[best]),
                           UNIFORM, budget)]

    def line(self, cost: str) -> list[dict[str, float]]:
        """By the integer program alone, plans from the least to the greatest of a cost."""
        problem = self.problem
        least, greatest = possible(problem.losses, problem.costs[cost])
        budgets = [{cost: least + (greatest - least) * step / (FRONT - 1)}
                   for step in range(FRONT)]
        return [{'predicted': problem.base + one.loss, **one.costs}
                for one in front(problem.losses, problem.costs, budgets)]

    def looked_at(self) -> list[dict[str, float]]:
        """Costs and measured losses of all plans that were looked at as a whole."""
        return [{'whole': loss, **self.problem.costs_of(plan)}
                for plan, loss in self._seen.values()]

    def _evolved(self, limits: Mapping[str, float], start: list[Plan]) -> Plan:
        blocks = self.losses.blocks

        def plan_of(genes: Genes) -> dict[str, Widths]:
            return {block.name: block.choices[gene] for block, gene in zip(blocks, genes)}

        def loss_of(genes: Genes) -> float:
            loss = self._loss(plan_of(genes))
            self.tell()
            return loss

        costs = [[[self.problem.costs[name].layers[block.name][own] for own in block.choices]
                  for block in blocks] for name in limits]
        fixed = [sum(next(iter(row.values())) for name, row in self.problem.costs[
            limit].layers.items() if name not in self.problem.losses.layers) for limit in limits]
        found = evolve(costs, [limit - rest for limit, rest in zip(limits.values(), fixed)],
                       loss_of, self.genetic, evaluations=self.evaluations,
                       start=[tuple(block.choices.index(plan[block.name]) for block in blocks)
                              for plan in start])
        return plan_of(found.best)

    def _found(self, name: str, plan: Plan) -> PlanFound:
        return self.problem.found(name, plan, self._loss(plan))

    def _plan(self, found: PlanFound, source: str, budget: str = '') -> FrontPlan:
        return FrontPlan(found=found, source=source, budget=budget, plan=plan_of_blocks(
            found.widths, self.losses.blocks, self.losses.widths))

    def _loss(self, plan: Plan) -> float:
        loss = self.losses.of(plan)
        self._seen[frozenset(plan.items())] = (dict(plan), loss)
        return loss
