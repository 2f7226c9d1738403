"""What the model's last layers give on a batch, with gradients where they are asked for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.models import DataFlow, layer_role
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import Tape

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

    def replay(self, number: int, count: int, *, gradients: bool = False) -> list[RawOutput]:
        """Runs the model on a batch whose decisions are on the tape, up to the last raw output.

        What comes after (boxes drawn from the outputs, masks pasted) is not run: nobody asks for
        it, and some of it cannot be run with gradients.

        Args:
            number: Of the batch.
            count: How many outputs there are.
            gradients: Whether autograd records the forward.
        """
        seen: list[RawOutput] = []
        self.tape.positions.pop(number, None)
        with self._taken(seen, count), self.forwards.replaying(self.tape), \
                self.forwards.state.watched(number), \
                gradients_everywhere() if gradients else torch.no_grad():
            try:
                self.forwards.run(number)
            except _EnoughError:
                pass
        return seen

    @contextmanager
    def _taken(self, seen: list[RawOutput], count: int | None = None) -> Iterator[None]:
        def hook_for(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                seen.append((name, output.clone()))  # what comes after may change it in place
                if len(seen) == count:
                    raise _EnoughError
            return hook

        handles = [module.register_forward_hook(hook_for(name))
                   for name, module in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def gradients_everywhere() -> Iterator[None]:
    """Inside, autograd records, though a model or who runs it says ``no_grad``.

    Models are made to be trained with another forward than the one that predicts, which often
    turns gradients off as a whole or in parts. ``detach`` is left as it is.
    """
    def enter(guard: torch.no_grad) -> None:
        guard.prev = torch.is_grad_enabled()

    def enter_inference(guard: torch.inference_mode) -> None:
        guard._inference_mode_context = nullcontext()

    before = torch.no_grad.__enter__, torch.inference_mode.__enter__
    torch.no_grad.__enter__, torch.inference_mode.__enter__ = enter, enter_inference
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.no_grad.__enter__, torch.inference_mode.__enter__ = before
