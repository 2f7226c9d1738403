"""Refuses budgets that no plan keeps, before anything is solved or measured."""

from collections.abc import Mapping, Sequence

from mmbitsplit.calibration.plan_loss import Given
from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.passes.forwards import Forwards, check_not_empty
from mmbitsplit.passes.team import Team
from mmbitsplit.passes.thread_state import as_called, state_of_its_own
from mmbitsplit.passes.uncompiled import as_written, uncompiled
from mmbitsplit.planning.allocation import check_budgets
from mmbitsplit.planning.latency_table import read_latencies
from mmbitsplit.planning.request_plan import check_request
from mmbitsplit.planning.watched_widths import WatchedWidths
from mmbitsplit.structures import QuantSpec

# Bytes of all but codes are estimated before layers are solved: what is nearer than this to the
# least is refused by the exact table.
ESTIMATED = {'bytes': 0.02}


def check_budget(given: Given, spec: QuantSpec,
                 budgets: Sequence[Mapping[str, float]] | None = None) -> None:
    """Raises ``ValueError`` for limits that no choice of widths keeps.

    The model is watched on a batch, three forwards, and float again afterwards.

    Args:
        given: Float model and batches.
        spec: The request, with a budget.
        budgets: Limits of each; those of the request when not given.

    Raises:
        ValueError: See ``allocate``; or the request does not fit the model.
    """
    budget, team = spec.budget, given.team or Team()
    assert budget is not None, 'the request has no budget'
    check_not_empty(team.total(len(given.batches)))
    latencies = None if budget.latency_table is None else read_latencies(budget.latency_table)
    model, before = as_written(given.model), ModelState(given.model)
    check_request(model, spec)
    try:
        with uncompiled(model), full_float32(), state_of_its_own() as caller:
            watched = WatchedWidths.of(Forwards.of(
                model.eval(), given.batches, as_called(given.run, caller),
                seed=spec.calibration.seed, **given.options), spec)
            prepared = watched.prepare()
            check_budgets(watched.choices, watched.costs(prepared, latencies),
                          [budget.limits] if budgets is None else budgets,
                          watched.together(prepared), slack=ESTIMATED)
    finally:
        before.put_back()
