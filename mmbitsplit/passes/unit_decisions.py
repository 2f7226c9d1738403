"""One float forward before all others, in which it is decided how the calls of units are kept.

The first batch that calls a unit decides for it, in the process that has it; the others are told.
So it is the same for any number of processes, and whatever branch comes to a unit first.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.models import PreparedModel, layer_input
from mmbitsplit.models.layers.streams import streams_through
from mmbitsplit.models.watch.one_thread import OneThread
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import ReplayPoint, Tape, patched
from mmbitsplit.passes.unit_evidence import Decision, UnitEvidence
from mmbitsplit.passes.unit_module import NoUnit, OpenCall, UnitModule, open_call


@dataclass
class UnitDecisions:
    """Runs the float model on the first batch that calls each unit.

    Args:
        prepared: The model.
        forwards: Of it.
        evidence: Of each unit by name; told what is decided.
        found: What this process has decided.
    """

    prepared: PreparedModel
    forwards: Forwards
    evidence: Mapping[str, UnitEvidence]
    found: dict[str, Decision] = field(default_factory=dict)

    def make(self) -> list[str]:
        """Decides; returns units of which no call was seen where one was expected."""
        first = {name: min(batches) for name, one in self.evidence.items()
                 if (batches := [batch for batch, calls in one.counts.items() if calls])}
        for batch in sorted({*first.values()} & self.forwards.batches.keys()):
            self._look({name for name, number in first.items() if number == batch}, batch)
        decided = {name: decision for part in self.forwards.team.gather(self.found)
                   for name, decision in part.items()}
        for name, decision in decided.items():
            self.evidence[name].adopt(decision)
        return sorted(first.keys() - decided.keys())

    def _look(self, names: set[str], batch: int) -> None:
        one_thread = OneThread()
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(self.forwards.recording(Tape()))
            for name, layer in self.prepared.layers.items():
                stack.enter_context(patched([ReplayPoint(layer, 'forward')],
                                            _in_float(name, layer, one_thread)))
            for name in names:
                calls = _FirstCall(self.evidence[name], batch, self.forwards, self.found)
                for index, module in enumerate(calls.function.modules):
                    stack.enter_context(patched([ReplayPoint(module, 'forward')],
                                                calls.interceptor(index)))
            for table in self.prepared.embeddings.values():
                stack.enter_context(table.in_float())
            stack.enter_context(one_thread.around())
            stack.enter_context(streams_through())
            self.forwards.alone(batch)


def _in_float(name: str, layer: Any, one_thread: OneThread) -> Callable:
    def wrap(forward: Callable) -> Callable:
        def intercepted(*args: Any, **kwargs: Any) -> Tensor:
            one_thread.check(name)
            return layer.float_forward(layer_input(args, kwargs)) if layer.quantized \
                else forward(*args, **kwargs)
        return intercepted
    return wrap


class _FirstCall:
    """Waits for the first call of a unit that comes to its end."""

    def __init__(self, evidence: UnitEvidence, batch: int, forwards: Forwards,
                 found: dict[str, Decision]):
        self.evidence, self.batch = evidence, batch
        self.state, self.found = forwards.state, found
        self.call: OpenCall | None = None
        self.trying = False

    @property
    def function(self) -> UnitModule:
        """The unit."""
        return self.evidence.function

    def interceptor(self, index: int) -> Callable:
        """What is put around the forward of one of its modules."""
        def wrap(forward: Callable) -> Callable:
            def intercepted(*args: Any, **kwargs: Any) -> Any:
                name = self.function.unit.name
                if self.trying or name in self.found or not self.function.goes_on(self.call, index):
                    return forward(*args, **kwargs)
                return self._called(index, forward, args, kwargs)
            return intercepted
        return wrap

    def _called(self, index: int, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if index == 0:
            self.call = open_call(self.state, args, kwargs, rewinds=True)
        call = self.call
        call.position = index
        try:
            self.function.note(index, args, kwargs)
        except NoUnit as error:
            self.evidence.refuse(self.batch, str(error))
        output = forward(*args, **kwargs)
        if index == len(self.function.modules) - 1:
            self.call = None
            with self.state.ours.apart():
                self.found[self.function.unit.name] = self.evidence.decide(
                    self.batch, call.x, output, lambda x: self._tried(call, x))
        return output

    def _tried(self, call: OpenCall, x: Tensor) -> Tensor:
        """What the float unit makes of an input, called as it was; leaves no trace."""
        here = self.state.bookmark()
        self.trying = True
        try:
            call.rewind()
            return self.function(x)
        finally:
            self.trying = False
            here.rewind()
