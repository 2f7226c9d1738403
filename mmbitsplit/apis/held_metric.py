"""The metric of a config's evaluator that may fall by so much while plans are tried."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mmbitsplit.calibration.plan_trials import MetricTarget
from mmbitsplit.engine.results.evaluation_record import EvaluationRecord
from mmbitsplit.engine.run.integers import IntegerUse
from mmbitsplit.report.tables import headline_metrics, in_points

Evaluation = tuple[dict[str, float], float, EvaluationRecord | None, IntegerUse]


class HeldMetric:
    """Evaluates plans, and keeps what was found, so that the chosen one is not evaluated again.

    Of several headline metrics (boxes and masks) the one that falls most counts.

    Args:
        wanted: Of the float model.
        evaluate: Figures, seconds, record and use of integers of the model as it is.
    """

    def __init__(self, wanted: Mapping[str, float], evaluate: Callable[[], Evaluation]):
        self.wanted, self._evaluate = wanted, evaluate
        self.evaluations: list[Evaluation] = []

    @property
    def target(self) -> MetricTarget:
        """As a search takes it."""
        return MetricTarget(self.evaluate, self.drop)

    def evaluate(self) -> dict[str, float]:
        """Figures of the model as it is."""
        self.evaluations.append(self._evaluate())
        return self.evaluations[-1][0]

    def drop(self, metrics: Mapping[str, float]) -> float:
        """By how many points the model is worse than the float one; infinite if it has no figure.
        """
        drops = [in_points(name, self.wanted[name] - metrics.get(name, -math.inf))
                 for name in headline_metrics({'float': self.wanted}) if name in self.wanted]
        if not drops:
            raise ValueError('quantization.budget.max_drop needs a figure of the evaluator, and '
                             'the float model has none; give a test_evaluator that has.')
        return max(drops)

    def known(self, choice: Mapping[str, Any]) -> Evaluation | None:
        """What was found of the plan that was chosen, ``None`` where that is to be evaluated.

        Args:
            choice: From ``PlanChoice.to_json``; empty without a budget.
        """
        if not choice:
            return None
        metrics = choice['plans'][choice['chosen']]['trial']['metrics']
        found = [one for one in self.evaluations if one[0] == metrics]
        return found[0] if len(found) == 1 and metrics else None
