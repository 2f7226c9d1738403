"""Runs the float model so that gradients of its raw outputs reach its layers.

Models are run to predict: inside ``torch.no_grad()`` perhaps, with steps after the last layer that
take no tensor which requires gradients, and with changes in place. What can be is gone around here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from mmbitsplit.passes.replay import ReplayPoint, patched

INSTEAD = "Take calibration.sampling='even', and a method that needs no importance."
_PLAIN = (Tensor.numpy, Tensor.__array__, Tensor.__deepcopy__)  # refuse what requires gradients


class NoGradients(RuntimeError):
    """A model cannot be run with gradients; the message says why."""


class KeepGradients(TorchFunctionMode):
    """While it is on, ``no_grad`` of the model's own code does nothing.

    Attributes:
        off: Whether everything is as ever for a while.
    """

    def __init__(self) -> None:
        super().__init__()
        self.off = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch._C._set_grad_enabled and not self.off:
            return None
        if func in _PLAIN and isinstance(args[0], Tensor):
            args = (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))

    @contextmanager
    def without(self) -> Iterator[None]:
        """Inside, no gradients are kept."""
        before, self.off = self.off, True
        try:
            with torch.no_grad():
                yield
        finally:
            self.off = before


@contextmanager
def gradients_kept(model: nn.Module, points: Sequence[ReplayPoint]) -> Iterator[None]:
    """Around a forward: gradients pass what passes them, and none go to parameters.

    What replay points return is a constant: they decide in jumps, and nothing before them is seen
    through them.

    Args:
        model: Its parameters require no gradients inside.
        points: See ``ReplayPoint``; of those with ``indices_only`` values pass as ever.
    """
    mode, asked = KeepGradients(), [one for one in model.parameters() if one.requires_grad]

    def constant(method: Callable) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with mode.without():
                return method(*args, **kwargs)
        return wrapped

    whole = [point for point in points if not point.indices_only]
    with ExitStack() as stack:
        stack.callback(lambda: [one.requires_grad_(True) for one in asked])
        for one in asked:
            one.requires_grad_(False)
        stack.enter_context(patched(whole, constant))
        stack.enter_context(patched([ReplayPoint(checkpoint, 'checkpoint', instead=_at_once)],
                                    lambda method: method))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(mode)
        yield


def _at_once(function: Callable, *args: Any, use_reentrant: Any = None,
             preserve_rng_state: bool = True, context_fn: Any = None, determinism_check: Any = None,
             debug: bool = False, early_stop: bool = True, **kwargs: Any) -> Any:
    """``torch.utils.checkpoint.checkpoint`` that keeps what it computes: layers are called once."""
    return function(*args, **kwargs)
