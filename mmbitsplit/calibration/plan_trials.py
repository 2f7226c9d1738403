"""Calibrates several plans one after the other from one float model, and keeps the best."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mmbitsplit.calibration.calibrate import calibrate
from mmbitsplit.calibration.journal import Journal
from mmbitsplit.calibration.plan_loss import Given, PlanLoss
from mmbitsplit.calibration.solved_layers import Progress
from mmbitsplit.functional import payload_bytes
from mmbitsplit.models import PreparedModel
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.passes.team import Team
from mmbitsplit.planning.width_choices import with_widths
from mmbitsplit.structures import BitPlan, QuantizationReport, QuantSpec
from mmbitsplit.structures.plan_choice import PlanFound, PlanTrial

FOLDER = 'plans'  # in the folder of the run's journal, a folder a plan


@dataclass(frozen=True)
class MetricTarget:
    """How the metric is measured that may fall by so much.

    Args:
        evaluate: Figures of the model as it is now.
        drop: By how many points these are worse than the float model's.
    """

    evaluate: Callable[[], Mapping[str, float]]
    drop: Callable[[Mapping[str, float]], float]


@dataclass
class Calibrated:
    """A model that a plan was calibrated on.

    Args:
        plan: With its trial.
        prepared, report: See ``calibrate``.
        bit_plan: Of all layers.
        state: Of the model, to be put back.
    """

    plan: PlanFound
    prepared: PreparedModel
    report: QuantizationReport
    bit_plan: BitPlan
    state: ModelState


@dataclass
class PlanTrials:
    """Calibrates plans; the model is float between two of them.

    Args:
        given: Float model and batches.
        spec: The request, with a budget.
        loss: Judges calibrated models.
        float_state: Of the model.
        journal: Of the run, in the first process: each plan has a journal of its own in its folder,
            and what came of it is remembered.
        progress: Told every step of calibrations.
    """

    given: Given
    spec: QuantSpec
    loss: PlanLoss
    float_state: ModelState
    journal: Journal | None = None
    progress: Callable[[Progress], None] = lambda step: None

    def calibrate(self, plan: PlanFound) -> Calibrated:
        """Quantizes the model by a plan; it stays so until ``to_float``."""
        self.to_float()
        made: list[BitPlan] = []
        prepared, report = calibrate(
            self.given.model, self.given.batches, with_widths(self.spec, plan.widths),
            run=self.given.run, **self.given.options, progress=self.progress,
            journal=self._journal(plan), planned=made.append)
        return Calibrated(plan, prepared, report, made[-1], ModelState(self.given.model))

    def judge(self, calibrated: Calibrated, target: MetricTarget | None) -> None:
        """Measures the calibrated model, which is in place, and notes it in its plan."""
        plan, team = calibrated.plan, self.given.team or Team()
        most = None if self.spec.budget is None else self.spec.budget.max_drop
        payload = payload_bytes(calibrated.prepared.model.state_dict().values())
        trial = PlanTrial(loss=self.loss(self.given), payload=payload)
        if target is not None and most is not None:
            trial.metrics = team.from_first(dict(target.evaluate()))
            trial.drop = target.drop(trial.metrics)
            trial.holds = trial.drop <= most
        plan.trial = trial

    def to_float(self) -> None:
        """Makes the model the float model that it was."""
        self.float_state.put_back()

    def _journal(self, plan: PlanFound) -> Journal | None:
        if self.journal is None:
            return None
        widths = plan.to_json()['widths']
        name = hashlib.sha256(json.dumps(widths, sort_keys=True).encode()).hexdigest()[:12]
        return Journal.open(self.journal.folder / FOLDER / name,
                            {**self.journal.identity, 'plan': widths}, resume=True)
