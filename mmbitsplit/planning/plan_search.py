"""The plans of a budget that are worth a calibration: the best sum, its neighbours, uniform ones.

That losses of layers add up is not believed: whole plans are measured, all layers at their widths
at once, from the solutions of the layers that the table was made of.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmbitsplit.planning.allocation import Allocation, allocate
from mmbitsplit.planning.exchanges import Refined, exchanges, refine
from mmbitsplit.planning.width_choices import uniform_plans
from mmbitsplit.structures import Widths, WidthTable
from mmbitsplit.structures.plan_choice import MIXED, UNIFORM, PlanFound

_ROUND_OFF = 1e-9


@dataclass(frozen=True)
class PlanProblem:
    """What plans are chosen from; fixed for all budgets.

    Args:
        losses: What the model loses with each layer alone at each of its widths.
        base: Its loss where every layer has its widest.
        costs: By name, of each layer at each of its widths.
        every: Widths that uniform plans may have.
        together: Sets of layers whose inputs have one width.
    """

    losses: WidthTable
    base: float
    costs: Mapping[str, WidthTable]
    every: Sequence[Widths]
    together: Sequence[frozenset[str]] = ()

    def costs_of(self, plan: Mapping[str, Widths]) -> dict[str, float]:
        """All costs of a plan."""
        return {name: table.sum(plan) for name, table in self.costs.items()}

    def predicted(self, plan: Mapping[str, Widths]) -> float:
        """The loss that a plan would have if losses of layers added up."""
        return self.base + self.losses.sum(plan)

    def uniform(self) -> dict[Widths, dict[str, Widths]]:
        """Plans that give all layers the same, where it is not fixed."""
        return uniform_plans(self.losses.layers, self.every)

    def found(self, name: str, plan: Mapping[str, Widths], whole: float | None = None,
              ) -> PlanFound:
        """A plan with what is known of it."""
        return PlanFound(name, dict(plan), self.costs_of(plan), self.predicted(plan), whole)


@dataclass(frozen=True)
class Searched:
    """The plans of a budget.

    Args:
        plans: The best by the whole plan's loss first, at most one of each kind.
        allocation: What the integer program said.
        refined: What exchanges led to.
    """

    plans: tuple[PlanFound, ...]
    allocation: Allocation
    refined: Refined


def search(problem: PlanProblem, limits: Mapping[str, float],
           loss_of: Callable[[Mapping[str, Widths]], float], tries: int) -> Searched:
    """Finds plans within limits.

    Exchanges begin at the better of the integer program's plan and the best uniform one, so that
    what they lead to is no worse than either.

    Args:
        problem: Losses and costs.
        limits: Most of some costs.
        loss_of: The loss of a whole plan.
        tries: Most exchanges that are measured.

    Returns:
        The mixed plan, and the best uniform one within the limits where there is one.

    Raises:
        ValueError: See ``allocate``.
    """
    allocation = allocate(problem.losses, problem.costs, limits, problem.together)
    begin = {**allocation.widths}
    loss = loss_of(begin)
    uniform = {}
    for widths, plan in widest_within(problem, limits).items():
        uniform[loss if plan == begin else loss_of(plan)] = uniform_name(widths), plan
    least = min(uniform, default=math.inf)
    if least < loss:
        begin, loss = uniform[least][1], least
    refined = refine(begin, loss, loss_of, lambda plan: exchanges(
        plan, problem.losses, problem.costs, limits, problem.together), tries)
    plans = [problem.found(MIXED, refined.plan, refined.loss)]
    if uniform:
        name, plan = uniform[least]
        best = problem.found(name, plan, least)
        # Nothing better than uniform was found: then there is one plan.
        plans = [best] if plan == refined.plan else [*plans, best]
    return Searched(tuple(plans), allocation, refined)


def widest_within(problem: PlanProblem, limits: Mapping[str, float],
                  ) -> dict[Widths, dict[str, Widths]]:
    """The uniform plans within limits, but those that another is at least as wide as."""
    fitting = {widths: plan for widths, plan in problem.uniform().items()
               if all(problem.costs[name].sum(plan) <= limit + _ROUND_OFF * abs(limit)
                      for name, limit in limits.items()) and _is_choice(plan, problem)}
    return {widths: plan for widths, plan in fitting.items()
            if not any(_wider(other, widths) for other in fitting)}


def uniform_name(widths: Widths) -> str:
    """What a uniform plan is called."""
    return f'{UNIFORM} {widths}'


def _is_choice(plan: Mapping[str, Widths], problem: PlanProblem) -> bool:
    """Whether inputs that have one width have it in a plan too."""
    return all(len({plan[name].activation for name in group & plan.keys()} - {None}) <= 1
               for group in problem.together)


def _wider(one: Widths, other: Widths) -> bool:
    return one != other and one.weight >= other.weight \
        and (one.activation or 0) >= (other.activation or 0)
