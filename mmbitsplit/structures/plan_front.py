"""Plans of a model with several widths that no other is better than: ``pareto.json``."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mmbitsplit.structures.given_plan import PlanSpec
from mmbitsplit.structures.plan_choice import PlanFound
from mmbitsplit.structures.widths import WidthTable


@dataclass(kw_only=True)
class FrontPlan:
    """A plan that was measured on the model.

    Args:
        found: Widths by block, costs, its loss added up (``predicted``) and measured (``whole``).
        source: ``'program'``, ``'genetic'`` or ``'uniform'``.
        budget: That it was searched for, in words; empty for uniform ones.
        plan: By layer, as ``set_plan`` takes it.
        best: Whether its loss is the least of the budget.
    """

    found: PlanFound
    source: str
    budget: str
    plan: PlanSpec
    best: bool = False


@dataclass(kw_only=True)
class PlanFront:
    """What was found of a model with several widths.

    Args:
        loss: Kind of loss.
        against: What losses are against: ``'widest'`` for the model with all blocks at their
            widest, ``'reference'`` for another model that was given.
        base: Loss of the model with all blocks at their widest.
        blocks: By name, the places (layers, products, streams) that change together.
        table: What each block alone loses at each of its widths.
        costs: What each block costs, by name.
        program: By the integer program alone, costs and losses added up of 13 budgets.
        plans: Those of budgets, then uniform ones.
        looked_at: Costs and measured loss of every plan that was looked at.
        measured: How many plans were run for it.
        seconds: That this took.
    """

    loss: str
    against: str
    base: float
    blocks: dict[str, tuple[str, ...]]
    table: WidthTable
    costs: dict[str, WidthTable]
    program: list[dict[str, float]]
    plans: list[FrontPlan]
    looked_at: list[dict[str, float]] = field(default_factory=list)
    measured: int = 0
    seconds: float = 0.0

    def best(self, budget: str) -> FrontPlan:
        """The plan of a budget with the least measured loss.

        Raises:
            ValueError: There is no such budget; names those there are.
        """
        for one in self.plans:
            if one.budget == budget and one.best:
                return one
        known = dict.fromkeys(one.budget for one in self.plans if one.budget)
        raise ValueError(f"budget '{budget}' was not searched for; there are "
                         f'{", ".join(known) or "none"}.')

    def front(self, cost: str = 'bytes') -> list[FrontPlan]:
        """Plans that no other of these is both cheaper and better than, the cheapest first.

        Args:
            cost: A key of ``costs``.
        """
        return [self.plans[number] for number in undominated(
            [(one.found.costs[cost], measured_of(one.found)) for one in self.plans])]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; plans themselves are files of their own."""
        plans = [{**one.found.to_json(), 'source': one.source, 'budget': one.budget,
                  'best': one.best} for one in self.plans]
        return {'loss': self.loss, 'against': self.against, 'base': self.base,
                'blocks': {name: list(places) for name, places in self.blocks.items()},
                'table': self.table.to_json(),
                'costs': {name: table.to_json() for name, table in self.costs.items()},
                'front': self.program, 'plans': plans, 'looked_at': self.looked_at,
                'measured': self.measured, 'seconds': round(self.seconds, 1)}


def measured_of(found: PlanFound) -> float:
    """The loss of a plan as measured, or added up where it was not."""
    return found.predicted if found.whole is None else found.whole


def undominated(points: Iterable[tuple[float, float]]) -> list[int]:
    """Returns which of some points (cost, loss) no other is below in both, by rising cost."""
    found, least = [], float('inf')
    for _, loss, number in sorted((cost, loss, number) for number, (cost, loss)
                                  in enumerate(points)):
        if loss < least:
            found.append(number)
            least = loss
    return found
