"""Which plans a budget led to, what each cost and lost, and which was taken: ``budget.json``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mmbitsplit.structures.widths import Widths, WidthTable

MIXED, UNIFORM = 'mixed', 'uniform'


@dataclass(kw_only=True)
class PlanTrial:
    """What came of a plan that was calibrated.

    Args:
        loss: Of the calibrated model, without labels.
        payload: Bytes that its packed file stores.
        metrics: The evaluator's figures, where it was evaluated.
        drop: By how much the metric fell, in points; ``None`` where it was not evaluated.
        holds: Whether that is within ``max_drop``.
    """

    loss: float
    payload: int
    metrics: dict[str, float] = field(default_factory=dict)
    drop: float | None = None
    holds: bool | None = None


@dataclass
class PlanFound:
    """A plan of a budget.

    Args:
        name: ``'mixed'`` or such as ``'uniform W4'``.
        widths: Of each layer that may have several.
        costs: By name, of the whole plan.
        predicted: Its loss if losses of layers added up.
        whole: Its loss with all layers at their widths at once, each solved as in the table;
            ``None`` where that was not asked for.
        trial: Once it has been calibrated.
    """

    name: str
    widths: dict[str, Widths]
    costs: dict[str, float]
    predicted: float
    whole: float | None
    trial: PlanTrial | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {**asdict(self), 'widths': {name: str(widths)
                                           for name, widths in self.widths.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> 'PlanFound':
        """Reads what ``to_json`` returned."""
        trial = value['trial']
        return cls(**{**value, 'widths': {name: Widths.read(text)
                                          for name, text in value['widths'].items()},
                      'trial': None if trial is None else PlanTrial(**trial)})


@dataclass(kw_only=True)
class PlanChoice:
    """How widths were chosen.

    Args:
        limits: Of the budget, by name.
        loss: Kind of loss, ``'kl'`` or ``'raw'``.
        base: Of the model with every layer at its widest.
        table: What each layer alone loses at each of its widths.
        costs: What each layer costs, by name.
        plans: Those that were calibrated, in this order.
        chosen: Number of the plan that was taken.
        front: By the integer program alone, plans of other budgets, for pictures.
        exchanges: ``'tried'`` and ``'taken'``.
        status: Of the integer program.
        unseen: Whether calibrated plans were judged on images that no layer was solved on.
        sensitivity: How ``table`` was found; unless ``'measured'``, its sums are in other units
            than losses of plans.
        max_drop: Asked for, in points.
        held: Whether a plan kept within it; ``None`` where nothing was asked for.
    """

    limits: dict[str, float]
    loss: str
    base: float
    table: WidthTable
    costs: dict[str, WidthTable]
    plans: list[PlanFound]
    chosen: int = 0
    front: list[dict[str, float]] = field(default_factory=list)
    exchanges: dict[str, int] = field(default_factory=dict)
    status: str = 'optimal'
    unseen: bool = True
    sensitivity: str = 'measured'
    max_drop: float | None = None
    held: bool | None = None

    @property
    def plan(self) -> PlanFound:
        """The plan that was taken."""
        return self.plans[self.chosen]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values, as ``budget.json`` has them."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, 'table': self.table.to_json(),
                'costs': {name: table.to_json() for name, table in self.costs.items()},
                'plans': [plan.to_json() for plan in self.plans]}


def budget_summary(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what ``results.json`` says of a budget: no tables, no widths of layers.

    Args:
        choice: From ``PlanChoice.to_json``.
    """
    plans = [{name: value for name, value in plan.items() if name != 'widths'}
             for plan in choice['plans']]
    return {**{name: value for name, value in choice.items()
               if name not in ('table', 'costs', 'front')}, 'plans': plans}
