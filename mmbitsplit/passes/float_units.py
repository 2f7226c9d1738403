"""What units are given and give in the float model, for learning them apart from each other."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import ReplayPoint, patched
from mmbitsplit.passes.unit_evidence import UnitEvidence
from mmbitsplit.passes.unit_module import NoUnit, OpenCall, open_call


@contextmanager
def taking_units(forwards: Forwards, evidence: Mapping[str, UnitEvidence]) -> Iterator[None]:
    """Around float forwards: keeps inputs and outputs of the units' calls.

    Args:
        forwards: Of the float model.
        evidence: By unit; how calls are kept has been decided.
    """
    with ExitStack() as stack:
        for one in evidence.values():
            calls = _Calls(forwards, one)
            for index, module in enumerate(one.function.modules):
                stack.enter_context(patched([ReplayPoint(module, 'forward')],
                                            calls.interceptor(index)))
        yield


class _Calls:
    """Calls of one unit as they begin and end."""

    def __init__(self, forwards: Forwards, evidence: UnitEvidence):
        self.state, self.evidence = forwards.state, evidence
        self.call: OpenCall | None = None

    def interceptor(self, index: int) -> Callable:
        """What is put around the forward of one of its modules."""
        def wrap(forward: Callable) -> Callable:
            def intercepted(*args: Any, **kwargs: Any) -> Any:
                if not self.evidence.function.goes_on(self.call, index):
                    return forward(*args, **kwargs)
                return self._called(index, forward, args, kwargs)
            return intercepted
        return wrap

    def _called(self, index: int, forward: Callable, args: tuple, kwargs: dict) -> Any:
        batch, function = self.state.current_batch(), self.evidence.function
        if index == 0:
            self.call = open_call(self.state, args, kwargs, rewinds=False)
        call = self.call
        call.position = index
        try:
            function.note(index, args, kwargs)
        except NoUnit as error:
            self.evidence.refuse(batch, str(error))
        output = forward(*args, **kwargs)
        if index == len(function.modules) - 1:
            self.call = None
            with self.state.ours.apart():
                self.evidence.take_float(batch, call.x, output)
        return output
