"""Runs a model so that gradients of its raw outputs reach its layers.

Models are run to predict: inside ``torch.no_grad()`` or ``torch.inference_mode()`` perhaps, with
steps after the last layer that take no tensor which requires gradients, and with changes in place.
What can be is gone around here.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
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
        if func in _PLAIN and isinstance(args[0], Tensor) and args[0].requires_grad:
            plain = args[0].detach()
            if func is Tensor.__deepcopy__:
                # The memo knows tensors by their address, which another one gets once this is gone.
                return args[1].setdefault(id(args[0]), plain.clone())
            args = (plain, *args[1:])
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
def gradients_kept(model: nn.Module, points: Sequence[ReplayPoint],
                   learned: Sequence[Tensor] = ()) -> Iterator[None]:
    """Around a forward: gradients pass what passes them, and of parameters go to few or none.

    ``detach`` is left as it is.

    What replay points return is a constant: they decide in jumps, and nothing before them is seen
    through them.

    Args:
        model: Its parameters require no gradients inside.
        points: See ``ReplayPoint``; of those with ``indices_only`` values pass as ever.
        learned: Parameters among them that go on doing so.
    """
    mode, kept = KeepGradients(), {id(one) for one in learned}
    asked = [one for one in model.parameters() if one.requires_grad and id(one) not in kept]

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
        stack.enter_context(_no_inference_mode())
        stack.enter_context(torch.enable_grad())
        stack.enter_context(mode)
        yield


@contextmanager
def _no_inference_mode() -> Iterator[None]:
    """Inside, ``inference_mode`` of the model's own code does nothing in this thread.

    No mode of torch sees who enters it: the class is changed for a while.
    """
    thread, enter = threading.get_ident(), torch.inference_mode.__enter__

    def entered(guard: torch.inference_mode) -> None:
        if threading.get_ident() == thread:
            guard._inference_mode_context = nullcontext()
        else:
            enter(guard)

    torch.inference_mode.__enter__ = entered
    try:
        yield
    finally:
        torch.inference_mode.__enter__ = enter


def _at_once(function: Callable, *args: Any, use_reentrant: Any = None,
             preserve_rng_state: bool = True, context_fn: Any = None, determinism_check: Any = None,
             debug: bool = False, early_stop: bool = True, **kwargs: Any) -> Any:
    """``torch.utils.checkpoint.checkpoint`` that keeps what it computes: layers are called once."""
    return function(*args, **kwargs)
