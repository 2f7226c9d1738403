"""Plans of any budget of one model: the table is measured once, and only when it is needed."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmbitsplit.calibration.journal import Journal
from mmbitsplit.calibration.plan_loss import Given
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.passes.team import Team
from mmbitsplit.planning.allocation import front, possible
from mmbitsplit.planning.plan_search import PlanProblem, search, uniform_name, widest_within
from mmbitsplit.structures import QuantSpec, Widths, WidthTable
from mmbitsplit.structures.plan_choice import PlanFound

TRIES = 32  # exchanges of a budget that are measured, a forward of the batches each
FRONT = 13  # budgets of a front, the least and the greatest among them


class Measured(Protocol):
    """What was measured of a model that is in place, its layers solved at all widths."""

    problem: PlanProblem
    kind: str

    def loss_of(self, plan: Mapping[str, Widths]) -> float:
        """Loss of a whole plan."""


class Remembered:
    """What a search knows already, in the journal of the run; the same in every process.

    Args:
        journal: Of the first process; without one nothing outlives this process.
        team: The processes.
    """

    KEY = 'budget'

    def __init__(self, journal: Journal | None, team: Team):
        self.journal = journal
        self.facts: dict[str, Any] = team.from_first(
            {} if journal is None else dict(journal.facts.get(self.KEY, {})))

    def get(self, key: str) -> Any:
        """``None`` where nothing is known."""
        return self.facts.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps plain values."""
        self.facts[key] = value
        if self.journal is not None:
            self.journal.remember(**{self.KEY: self.facts})


@dataclass
class PlanFinder:
    """Finds plans within limits.

    Args:
        given: The float model.
        spec: The request, with a budget.
        measuring: Opens what measures the model, and puts the model back when it is closed.
        memory: Of an interrupted run.
        float_state: Of the model.
        tell: Told a line a step.
    """

    given: Given
    spec: QuantSpec
    measuring: Callable[[], Any]
    memory: Remembered
    float_state: ModelState
    tell: Callable[[str], None] = lambda line: None
    exchanges: dict[str, int] = field(default_factory=lambda: {'tried': 0, 'taken': 0})
    _measured: Measured | None = None
    _inside: ModelState | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def problem(self) -> PlanProblem:
        """Losses and costs, measured where nobody has yet."""
        known = self.memory.get('problem')
        if known is None:
            with self._measuring() as measured:
                known = problem_value(measured.problem, measured.kind)
            self.memory.put('problem', known)
        return read_problem(known)

    @property
    def kind(self) -> str:
        """Of the loss that was measured."""
        return self.memory.get('problem')['kind']

    def plans(self, limits: Mapping[str, float]) -> list[PlanFound]:
        """The plans within limits, the best by the loss of the whole plan first."""
        problem, key = self.problem, f'plans within {json.dumps(dict(limits), sort_keys=True)}'
        known = self.memory.get(key)
        if known is None:
            front(problem.losses, problem.costs, [limits], problem.together)  # refuses early
            with self._measuring() as measured:
                found = search(problem, limits, measured.loss_of, TRIES)
            known = {'plans': [plan.to_json() for plan in found.plans],
                     'tried': found.refined.tried, 'taken': found.refined.taken,
                     'status': found.allocation.status}
            self.memory.put(key, known)
        self.exchanges['tried'] += known['tried']
        self.exchanges['taken'] += known['taken']
        return [PlanFound.from_json(plan) for plan in known['plans']]

    def uniform(self, limits: Mapping[str, float]) -> list[PlanFound]:
        """The widest uniform plans within limits, not measured, the dearest first."""
        problem = self.problem
        found = [problem.found(uniform_name(widths), plan)
                 for widths, plan in widest_within(problem, limits).items()]
        return sorted(found, key=lambda plan: -sum(plan.costs[name] / limit
                                                   for name, limit in limits.items()))

    def uniform_plans(self) -> list[PlanFound]:
        """All uniform plans, whatever they cost, each measured as a whole."""
        problem, known = self.problem, self.memory.get('uniform')
        if known is None:
            with self._measuring() as measured:
                known = [problem.found(uniform_name(widths), plan,
                                       measured.loss_of(plan)).to_json()
                         for widths, plan in problem.uniform().items()]
            self.memory.put('uniform', known)
        return [PlanFound.from_json(plan) for plan in known]

    def front(self, name: str) -> list[dict[str, Any]]:
        """By the integer program alone, plans from the least to the greatest of a cost."""
        problem = self.problem
        least, greatest = possible(problem.losses, problem.costs[name], problem.together)
        budgets = [{name: least + (greatest - least) * step / (FRONT - 1)}
                   for step in range(FRONT)]
        found = front(problem.losses, problem.costs, budgets, problem.together)
        return [{'predicted': problem.base + one.loss, **one.costs} for one in found]

    def close(self) -> None:
        """The model is float again and what was measured is given up."""
        self._measured = self._inside = None
        self._stack.close()

    @contextmanager
    def _measuring(self) -> Iterator[Measured]:
        """Inside, the model is as it was measured; float before and after."""
        if self._inside is None:
            self._measured = self._stack.enter_context(self.measuring())
        else:
            self._inside.put_back()
        assert self._measured is not None
        try:
            yield self._measured
        finally:
            self._inside = ModelState(self.given.model)
            self.float_state.put_back()


def problem_value(problem: PlanProblem, kind: str) -> dict[str, Any]:
    """Returns a problem as plain values."""
    return {'kind': kind, 'base': problem.base, 'losses': problem.losses.to_json(),
            'costs': {name: table.to_json() for name, table in problem.costs.items()},
            'every': [str(widths) for widths in problem.every],
            'together': [sorted(group) for group in problem.together]}


def read_problem(value: Mapping[str, Any]) -> PlanProblem:
    """Reads what ``problem_value`` returned."""
    return PlanProblem(
        WidthTable.from_json(value['losses']), value['base'],
        {name: WidthTable.from_json(table) for name, table in value['costs'].items()},
        [Widths.read(text) for text in value['every']],
        [frozenset(group) for group in value['together']])
