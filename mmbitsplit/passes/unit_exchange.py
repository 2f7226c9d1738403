"""Brings the calls of a unit together in the process that learns it.

In order of batch they are what one process would have, bit for bit. All processes take part; those
that do not learn the unit keep nothing.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.methods.unit_problem import UnitCall
from mmbitsplit.passes.team import Team
from mmbitsplit.passes.unit_evidence import UnitEvidence

UNSENT = 'is called with objects that processes cannot send each other'
_TENSORS = ('float_input', 'quantized_input', 'float_output')


def gather_calls(evidence: UnitEvidence, inputs: Mapping[int, list[Tensor]] | None, team: Team,
                 to: int, device: torch.device,
                 narrower: Sequence[Mapping[int, list[Tensor]]] = ()) -> tuple[UnitCall, ...]:
    """Gathers the calls of a unit from all processes.

    Args:
        evidence: Of this process; learns of problems that others have, and how they call the
            unit. What it has kept of calls is given away.
        inputs: See ``UnitEvidence.calls``; ``None`` for what the float model gives the unit.
        team: The processes; all call this.
        to: Rank of the one that gets the calls.
        device: Where the model is.
        narrower: See ``UnitEvidence.calls``.

    Returns:
        Them all in order of batch; none elsewhere, or where there is a problem.
    """
    _share_what_is_known(evidence, team)
    mine = evidence.float_calls() if inputs is None else \
        evidence.calls(inputs, narrower) if any(inputs.values()) else ()
    evidence.floats.clear()
    if team.size == 1 or evidence.problem:
        return mine
    empty = torch.empty(0)
    heads = team.gather([replace(call, **dict.fromkeys(_TENSORS, empty),
                                 width_inputs=(empty,) * len(call.width_inputs))
                         for call in mine])
    parts = team.collect([value for call in mine for value in (
        *(getattr(call, name) for name in _TENSORS), *call.width_inputs)], to)
    calls = []
    for head, tensors in zip(heads, parts):  # nothing elsewhere
        sent = iter(tensors)
        for call in head:
            own = {name: next(sent).to(device) for name in _TENSORS}
            calls.append(replace(call, **own, width_inputs=tuple(
                next(sent).to(device) for _ in call.width_inputs)))
    calls.sort(key=lambda call: call.batch)  # calls of a batch stay in their order
    return tuple(calls)


def _share_what_is_known(evidence: UnitEvidence, team: Team) -> None:
    function = evidence.function
    arguments = function.arguments if team.size > 1 else {}
    if not _can_be_sent(arguments):
        evidence.refuse(min(evidence.counts), UNSENT)
        arguments = {}
    for problems, others in team.gather((evidence.problems, arguments)):
        for batch, why in problems.items():
            evidence.refuse(batch, why)
        for key, value in others.items():
            function.arguments.setdefault(key, value)


def _can_be_sent(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # objects say in all kinds that they cannot
        return False
    return True
