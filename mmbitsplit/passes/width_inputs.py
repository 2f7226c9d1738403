"""What the quantized model gives a unit at each of several widths: run again from the images.

Batches are asleep at the unit's end, in the model of the widest. What a narrower one gives it is
made by a run of its own on each batch, with all solved layers switched, as far as the unit's last
call; replay points hand out what they have recorded. So skip connections, shared heads and
whatever else stands between units are what they are in the model.

It costs a run of all layers before, for each unit, width but the widest, and batch; a lockstep
with a branch a width would make each layer once a width, and hold that many branches asleep.
Beside thousands of steps of learning the runs are little, and a unit's inputs (or crops of them)
are all that is held.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import ReplayPoint, Tape, patched
from mmbitsplit.passes.unit_evidence import UnitEvidence
from mmbitsplit.passes.unit_module import OpenCall, input_of
from mmbitsplit.structures import Widths


class _EnoughError(BaseException):
    """All calls of a unit have begun; nobody but ``WidthInputs`` may catch it."""


@dataclass(frozen=True, kw_only=True)
class WidthInputs:
    """Runs the model on this process's batches, at one width after another.

    Args:
        forwards: Of the model; replay points are handed out for forwards of no branch.
        tape: What these have recorded.
        widths: Rising; the model has the last of them before and afterwards.
        use: Switches the layers that are solved.
    """

    forwards: Forwards
    tape: Tape
    widths: Sequence[Widths]
    use: Callable[[Widths], None]

    def of(self, evidence: UnitEvidence, inputs: Mapping[int, list[Tensor]],
           ) -> tuple[dict[int, list[Tensor]], ...]:
        """Inputs of a unit's calls at each width but the last, by batch: what is kept of them.

        Args:
            evidence: Of the unit, with the float model's calls.
            inputs: At the last width, by batch.

        Raises:
            RuntimeError: The unit is called more or less often than at the last width.
        """
        if evidence.problem:
            return ()
        found: list[dict[int, list[Tensor]]] = []
        try:
            for widths in self.widths[:-1]:
                self.use(widths)
                found.append({batch: self._of_batch(evidence, batch, len(calls))
                              for batch, calls in inputs.items() if calls})
        finally:
            self.use(self.widths[-1])
        return tuple(found)

    def _of_batch(self, evidence: UnitEvidence, batch: int, count: int) -> list[Tensor]:
        calls = _Calls(evidence, batch, count)
        with self._from_the_start(batch), calls.seen(), self.forwards.whole(batch):
            try:
                self.forwards.run(batch)
            except _EnoughError:
                pass
        if len(calls.inputs) != count:
            raise RuntimeError(
                f"Unit '{evidence.function.unit.name}' on {self.forwards.labels[batch]}: at "
                f'another width it is called {len(calls.inputs)} times instead of {count}. A step '
                'whose result depends on the data comes before; name it as a replay point.')
        return calls.inputs

    @contextmanager
    def _from_the_start(self, batch: int) -> Iterator[None]:
        """The tape is played from its beginning, and is where it was afterwards."""
        back = self.tape.bookmark(batch)
        self.tape.positions[batch] = 0
        try:
            yield
        finally:
            back()


class _Calls:
    """Sees the calls of a unit in one forward."""

    def __init__(self, evidence: UnitEvidence, batch: int, count: int):
        self.evidence, self.batch, self.count = evidence, batch, count
        self.open: OpenCall | None = None
        self.inputs: list[Tensor] = []

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Around the forward."""
        with ExitStack() as stack:
            for index, module in enumerate(self.evidence.function.modules):
                stack.enter_context(patched([ReplayPoint(module, 'forward')], self._wrap(index)))
            yield

    def _wrap(self, index: int) -> Callable:
        def wrap(forward: Callable) -> Callable:
            def intercepted(*args: Any, **kwargs: Any) -> Any:
                if self.evidence.function.goes_on(self.open, index):
                    self._enter(index, args, kwargs)
                return forward(*args, **kwargs)
            return intercepted
        return wrap

    def _enter(self, index: int, args: tuple, kwargs: dict) -> None:
        if index == 0:
            x = input_of(args, kwargs)
            self.open = OpenCall(None if x is None else x.clone())
        assert self.open is not None
        self.open.position = index
        if index < len(self.evidence.function.modules) - 1:
            return
        x, self.open = self.open.x, None
        self.inputs.append(torch.empty(0) if x is None else
                           self.evidence.part(self.batch, len(self.inputs), x))
        if len(self.inputs) == self.count:
            raise _EnoughError
