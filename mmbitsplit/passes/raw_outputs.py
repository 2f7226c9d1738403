"""What the model's last layers give on a batch, with gradients where they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.models import DataFlow, layer_role
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.hooks import hooked
from mmbitsplit.passes.replay import Tape
from mmbitsplit.passes.with_gradients import gradients_kept

RawOutput = tuple[str, Tensor]  # name of the layer, what it gave


class _EnoughError(BaseException):
    """All raw outputs are there; nobody but ``RawOutputs`` may catch it."""


@dataclass(frozen=True)
class RawOutputs:
    """Runs the model for what its last layers give, call by call.

    Args:
        forwards: Of the model.
        modules: Its last layers, by name.
        tape: Decisions that ``record`` writes down and ``replay`` hands out again.
    """

    forwards: Forwards
    modules: Mapping[str, nn.Module]
    tape: Tape

    @classmethod
    def of(cls, forwards: Forwards, flow: DataFlow, tape: Tape) -> 'RawOutputs':
        """Those of the layers whose output reaches no other layer."""
        return cls(forwards, {name: forwards.model.get_submodule(name)
                              for name in flow.order if 'last' in layer_role(name, flow)}, tape)

    def record(self, number: int) -> list[RawOutput]:
        """Runs the model as it is on a batch; what it decides is written onto the tape."""
        seen: list[RawOutput] = []
        self.tape.results.pop(number, None)
        with self._taken(seen), self.forwards.recording(self.tape):
            self.forwards.alone(number)
        return seen

    def replay(self, number: int, count: int, learned: Sequence[Tensor] | None = None,
               ) -> list[RawOutput]:
        """Runs the model on a batch whose decisions are on the tape, up to the last raw output.

        What comes after (boxes drawn from the outputs, masks pasted) is not run: nobody asks for
        it, and some of it cannot be run with gradients.

        Args:
            number: Of the batch.
            count: How many outputs there are.
            learned: What gradients are wanted of; ``None``: autograd does not record the forward.
        """
        seen: list[RawOutput] = []
        forwards = self.forwards
        self.tape.positions.pop(number, None)
        with self._taken(seen, count), forwards.replaying(self.tape), \
                forwards.state.watched(number), torch.no_grad() if learned is None else \
                gradients_kept(forwards.model, forwards.replay_points, learned):
            try:
                forwards.run(number)
            except _EnoughError:
                pass
        return seen

    def _taken(self, seen: list[RawOutput], count: int | None = None,
               ) -> AbstractContextManager[None]:
        def hook_for(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                seen.append((name, output.clone()))  # what comes after may change it in place
                if len(seen) == count:
                    raise _EnoughError
            return hook
        return hooked(self.modules.items(), hook_for)
