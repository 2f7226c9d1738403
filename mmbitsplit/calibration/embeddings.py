"""Embeddings are rounded before anything else is solved: layers are fitted to what they give."""

import time

from mmbitsplit.calibration.solved_layers import SolvedLayers
from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.solving.data_free import round_table


def solve_embeddings(prepared: PreparedModel, forwards: Forwards, solved: SolvedLayers,
                     stopwatch: Stopwatch) -> None:
    """Rounds all planned embeddings that have not been taken over.

    Args:
        prepared: The model; its layers may be in float.
        forwards: Of it; told that its modules have changed.
        solved: Where solutions go.
        stopwatch: Told what it takes.
    """
    done = {report.name for report in solved.tables}
    for plan in prepared.plan.embeddings:
        if plan.name not in done:
            started = time.perf_counter()
            with stopwatch('solve'):
                table = forwards.team.from_first(round_table(
                    prepared.embeddings[plan.name].weight, plan))
                solved.add_embedding(plan, table, time.perf_counter() - started)
    forwards.state.modules.renew(prepared.embeddings.values())
