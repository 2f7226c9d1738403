"""Measures what layers lose and cost at each width, kept beside the journal of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mmbitsplit.calibration.budget_check import check_budget
from mmbitsplit.calibration.journal import Journal
from mmbitsplit.calibration.journal.width_files import WidthFiles
from mmbitsplit.calibration.plan_loss import Given
from mmbitsplit.calibration.solved_layers import Progress
from mmbitsplit.planning.latency_table import read_latencies
from mmbitsplit.planning.plan_search import PlanProblem
from mmbitsplit.planning.width_sensitivity import WidthProgress, WidthSensitivity
from mmbitsplit.structures import QuantSpec, Widths

FOLDER = 'widths'  # in the folder of the run's journal
STAGES = {'gather': 'widths, float', 'solve': 'widths, solve', 'importance': 'importance',
          'measure': 'widths, measure'}


@dataclass(frozen=True)
class MeasuredWidths:
    """A model whose layers are solved at all widths; see ``plan_finder.Measured``.

    Args:
        problem: Losses and costs.
        kind: Of the loss.
        sensitivity: What installs and measures plans.
    """

    problem: PlanProblem
    kind: str
    sensitivity: WidthSensitivity

    def loss_of(self, plan: Mapping[str, Widths]) -> float:
        """Loss of a whole plan."""
        return self.sensitivity.loss_of(plan)


@contextmanager
def measured_widths(given: Given, spec: QuantSpec, journal: Journal | None = None,
                    progress: Callable[[Progress], None] = lambda step: None,
                    budgets: Sequence[Mapping[str, float]] | None = None,
                    ) -> Iterator[MeasuredWidths]:
    """Solves and measures; the model is float again afterwards.

    Args:
        given: Float model and batches.
        spec: The request, with a budget.
        journal: Of the run, in the first process.
        progress: Told every step.
        budgets: Limits of all that is asked for; those of the request when not given.

    Raises:
        ValueError: A budget cannot be kept, which is said first; see ``check_budget`` and
            ``WidthSensitivity``.
    """
    budget = spec.budget
    assert budget is not None
    latencies = None if budget.latency_table is None else read_latencies(budget.latency_table)
    check_budget(given, spec, budgets)
    files = None if journal is None else WidthFiles.take_over(
        journal.folder / FOLDER, journal.identity)

    def tell(step: WidthProgress) -> None:
        progress(Progress(STAGES[step.stage], step.step, step.steps,
                          seconds_left=step.seconds_left))

    with WidthSensitivity(given.model, given.batches, spec, run=given.run, **given.options,
                          journal=files, progress=tell) as found:
        losses = found.measure()
        base = found.base_loss
        with found.bank.holding(found.base):  # bytes of scales are exact once there are any
            costs = found.watched.costs(found.prepared, latencies)
        kind = found.losses.loss.kind if budget.loss == 'auto' else budget.loss
        yield MeasuredWidths(PlanProblem(losses, base, costs, budget.choices(),
                                         found.watched.together(found.prepared)), kind, found)
