"""Chooses widths within a budget or for a metric, and calibrates the model with them.

A table of what each layer loses at each width gives plans (``planning.plan_search``); the best few
are calibrated one after the other from the same float model, and the best of those stays.
"""

import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from mmbitsplit.calibration.journal import Journal
from mmbitsplit.calibration.plan_finder import Measured, PlanFinder, Remembered
from mmbitsplit.calibration.plan_loss import Given, PlanLoss
from mmbitsplit.calibration.plan_trials import FOLDER, Calibrated, MetricTarget, PlanTrials
from mmbitsplit.calibration.solved_layers import Progress
from mmbitsplit.calibration.width_measuring import FOLDER as WIDTHS
from mmbitsplit.calibration.width_measuring import measured_widths
from mmbitsplit.models import PreparedModel
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.passes.team import Team
from mmbitsplit.planning.allocation import allocate, possible
from mmbitsplit.planning.metric_target import levels_for, smallest_that_holds
from mmbitsplit.structures import BitPlan, QuantizationReport, QuantSpec
from mmbitsplit.structures.plan_choice import PlanChoice, PlanFound, PlanTrial

SIZE = 'bytes'
Measuring = Callable[[Given, QuantSpec], AbstractContextManager[Measured]]


class NoPlanHolds(ValueError):
    """No plan kept within ``max_drop``.

    Args:
        message: For the user.
        choice: What was tried.
    """

    def __init__(self, message: str, choice: PlanChoice):
        super().__init__(message)
        self.choice = choice


@dataclass(frozen=True)
class Callbacks:
    """What a search calls on its way.

    Args:
        progress: Every step of measuring and of calibrations.
        planned: The plan that was chosen.
        line: A line a plan, for people.
    """

    progress: Callable[[Progress], None] = lambda step: None
    planned: Callable[[BitPlan], None] = lambda plan: None
    line: Callable[[str], None] = lambda line: None


def calibrate_within(given: Given, spec: QuantSpec, *, measuring: Measuring | None = None,
                     target: MetricTarget | None = None, journal: Journal | None = None,
                     callbacks: Callbacks = Callbacks(),
                     ) -> tuple[PreparedModel, QuantizationReport]:
    """Quantizes a model in place with widths chosen within the request's budget.

    An error or Ctrl-C on the way leaves the model as it was.

    Args:
        given: Float model and batches; see ``calibrate``.
        spec: The request, with a budget.
        measuring: Measures what layers lose at each width; ``measured_widths`` when not given.
        target: How the metric is measured, where the budget says ``max_drop``.
        journal: Keeps the table, plans and solved layers; the first process of a team has it.
        callbacks: Called on the way.

    Returns:
        The prepared model and the report, whose ``budget`` is ``PlanChoice.to_json()``.

    Raises:
        ValueError: See ``calibrate`` and ``allocate``; no plan keeps within ``max_drop``
            (``NoPlanHolds``), or nobody measures the metric.
    """
    budget = spec.budget
    assert budget is not None, 'the request has no budget'
    if budget.max_drop is not None and target is None:
        raise ValueError('quantization.budget.max_drop needs a metric: mmbitsplit quantize '
                         "evaluates a config's own, quantize_model is given evaluate=.")
    if not spec.calibration.num_images:
        raise ValueError('quantization.budget is not supported with calibration.num_images=0: '
                         'what layers lose is seen on images. Give some, or a plan.')
    before = ModelState(given.model)
    try:
        search = _Search(given, spec, before, measuring or (lambda given, spec: measured_widths(
            given, spec, journal, callbacks.progress)), target, journal, callbacks)
        kept = search.run()
        kept.state.put_back()
    except BaseException:
        before.put_back()
        raise
    callbacks.planned(kept.bit_plan)
    kept.report.budget = search.choice(kept.plan).to_json()
    return kept.prepared, kept.report


def forget_plans(journal: Journal, measured: bool = False) -> None:
    """Removes what was kept of each plan from the journal of a run.

    Args:
        journal: Of the run.
        measured: Remove what was measured for all budgets, too.
    """
    for name in (FOLDER, *([WIDTHS] if measured else [])):
        shutil.rmtree(journal.folder / name, ignore_errors=True)


class _Search:
    """A search, from a float model to the calibrated one of the chosen plan."""

    def __init__(self, given: Given, spec: QuantSpec, float_state: ModelState,
                 measuring: Measuring, target: MetricTarget | None, journal: Journal | None,
                 callbacks: Callbacks):
        assert spec.budget is not None
        self.budget, self.callbacks, self.target = spec.budget, callbacks, target
        self.memory = Remembered(journal, given.team or Team())
        if journal is not None and not self.memory.facts:
            forget_plans(journal, measured=True)
            self.memory.put('begun', True)
        self.finder = PlanFinder(given, spec, lambda: measuring(given, spec), self.memory,
                                 float_state, callbacks.line)
        self._given = given, spec, float_state, journal
        self._trials: PlanTrials | None = None
        self.tried: list[PlanFound] = []
        self.kept: Calibrated | None = None

    @property
    def trials(self) -> PlanTrials:
        """Calibrates and judges plans; the float model is run when they are first asked for."""
        if self._trials is None:
            given, spec, float_state, journal = self._given
            kind = self.budget.loss if self.budget.loss in ('kl', 'raw') else 'auto'
            self._trials = PlanTrials(given, spec, PlanLoss.of(given, spec, kind), float_state,
                                      journal, self.callbacks.progress)
        return self._trials

    def run(self) -> Calibrated:
        """Searches; the model may be in any state afterwards."""
        try:
            if self.budget.max_drop is None:
                for plan in self.finder.plans(self.budget.limits)[:self.budget.evaluations]:
                    self.try_plan(plan)
            else:
                self.bisect()
        finally:
            self.finder.close()
        best = min(self.tried, key=self._rank)
        if self.budget.max_drop is not None and not best.trial.holds:
            raise self._none_holds(best)
        if self.kept is None or self.kept.plan is not best:  # tried by an interrupted run
            self.kept = self.trials.calibrate(best)
        return self.kept

    def bisect(self) -> None:
        """Tries plans of sizes in between until the smallest whose metric holds is known.

        Of three or more evaluations the last is for a uniform plan smaller than that, the largest.
        """
        limits, evaluations = self.budget.limits, self.budget.evaluations
        kept = int(evaluations > 2)
        sizes = self._sizes(levels_for(evaluations - kept))

        def holds(level: int) -> bool:
            plan = self.finder.plans({**limits, SIZE: sizes[level]})[0]
            return bool(self.try_plan(plan).trial.holds)

        def left() -> int:
            return evaluations - kept - len(self.tried)

        smallest_that_holds(len(sizes), holds, left)
        held = [plan.costs[SIZE] for plan in self.tried if plan.trial.holds]
        if kept and held:
            smaller = self.finder.uniform({**limits, SIZE: min(held) - 1})
            for plan in smaller[:evaluations - len(self.tried)]:
                self.try_plan(plan)

    def _sizes(self, levels: int) -> list[float]:
        """Payloads from the least to the greatest that is of use, each by the same factor more."""
        problem, limits = self.finder.problem, self.budget.limits
        least, greatest = possible(problem.losses, problem.costs[SIZE], problem.together)
        if limits:
            others = {name: limit for name, limit in limits.items() if name != SIZE}
            widest = allocate(problem.losses, problem.costs, others, problem.together)
            greatest = min(limits.get(SIZE, greatest), max(widest.costs[SIZE], least))
        if levels == 1:
            return [greatest]
        return [least * (greatest / least) ** (level / (levels - 1)) for level in range(levels)]

    def try_plan(self, plan: PlanFound) -> PlanFound:
        """Calibrates and judges a plan, but where that has been done."""
        for other in self.tried:
            if other.widths == plan.widths:
                return other
        self.tried.append(plan)
        key = f'trial of {sorted((name, str(own)) for name, own in plan.widths.items())}'
        plan.trial = self._known_trial(key)
        if plan.trial is not None:
            self.callbacks.line(f'{self._line(plan)} (by an earlier run)')
            return plan
        self.callbacks.line(f'plan {len(self.tried)}, {self._what(plan)}: calibrating')
        calibrated = self.trials.calibrate(plan)
        self.trials.judge(calibrated, self.target)
        if self.kept is None or self._rank(plan) <= min(map(self._rank, self.tried)):
            self.kept = calibrated
        self.memory.put(key, plan.to_json())
        self.callbacks.line(self._line(plan))
        return plan

    def _known_trial(self, key: str) -> PlanTrial | None:
        """What an earlier run found of a plan, whose budget may have been another."""
        known, most = self.memory.get(key), self.budget.max_drop
        trial = None if known is None else PlanFound.from_json(known).trial
        if trial is None or (most is not None and trial.drop is None):
            return None
        if most is None:
            return replace(trial, metrics={}, drop=None, holds=None)
        return replace(trial, holds=trial.drop <= most)

    def _rank(self, plan: PlanFound) -> tuple[float, ...]:
        """The least is the best: by loss, or the smallest that holds."""
        trial = plan.trial
        assert trial is not None
        loss = trial.loss if math.isfinite(trial.loss) else math.inf
        if self.budget.max_drop is None:
            return (loss,)
        size = trial.payload
        return (0.0, size, loss) if trial.holds else (1.0, _or_inf(trial.drop), size)

    def _what(self, plan: PlanFound) -> str:
        return f"{plan.name} with {plan.costs['weight_bits']:.2f} bits a weight"

    def _line(self, plan: PlanFound) -> str:
        trial, number = plan.trial, self.tried.index(plan) + 1
        assert trial is not None
        size = trial.payload
        text = f'plan {number}, {self._what(plan)}: {size / 1e3:.1f} kB, loss {trial.loss:.3g}'
        if trial.drop is None:
            return text
        return (f'{text}, drop {trial.drop:.2f} points, '
                f"{'holds' if trial.holds else 'does not hold'}; evaluation {number} of at most "
                f'{self.budget.evaluations}')

    def choice(self, chosen: PlanFound | None = None) -> PlanChoice:
        """What was tried, and which plan was taken."""
        problem, limited = self.finder.problem, next(iter(self.budget.limits), SIZE)
        best = min(self.tried, key=self._rank) if chosen is None else chosen
        return PlanChoice(
            limits=self.budget.limits, loss=self.finder.kind, base=problem.base,
            table=problem.losses, costs=dict(problem.costs), plans=self.tried,
            chosen=self.tried.index(best), front=self.finder.front(limited),
            exchanges=dict(self.finder.exchanges), unseen=self.trials.loss.unseen,
            sensitivity=self.budget.sensitivity, max_drop=self.budget.max_drop,
            held=None if self.budget.max_drop is None else chosen is not None)

    def _none_holds(self, best: PlanFound) -> NoPlanHolds:
        assert best.trial is not None
        return NoPlanHolds(
            f'No plan keeps within max_drop={self.budget.max_drop:g}: of {len(self.tried)} that '
            f'were evaluated, the least drop is {best.trial.drop:.2f} points, with '
            f"{best.costs['weight_bits']:.2f} bits a weight. Allow a larger drop, free layers "
            'that are fixed, or take another method or more calibration images.', self.choice())


def _or_inf(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value
