"""Lets models that ``torch.compile`` wraps run as they are written while they are calibrated.

Compiled code does not call modules, so that nobody could look at them, and following hooks and
the lockstep costs it minutes. After the calibration it is compiled again by itself, at the next
call: the layers have another class.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import Lock

import torch
from torch import nn


def as_written(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile(model)`` wraps, or the model itself.

    Both share all modules, so that what is changed in the one is changed in the other.
    """
    dynamo = sys.modules.get('torch._dynamo')  # who compiles has imported it
    while dynamo is not None and isinstance(model, dynamo.OptimizedModule):
        model = model._orig_mod
    return model


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, nothing that ``torch.compile`` made is compiled, in the model or called by it.

    Raises:
        ValueError: The model has compiled parts, and this torch cannot run them uncompiled.
    """
    dynamo = sys.modules.get('torch._dynamo')
    stance = getattr(torch.compiler, 'set_stance', None) if dynamo is not None else None
    compiled = dynamo is not None and any(
        isinstance(module, dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules())
    if compiled and stance is None:
        raise ValueError('The model has parts that torch.compile made, and this torch '
                         f'({torch.__version__}; 2.6 can) does not run them uncompiled. Quantize '
                         'the model first and compile it then.')
    with _STANCE.eager(stance) if stance is not None else nullcontext():
        yield


class _Stance:
    """Torch's stance is one for all threads: who comes first takes it, the last gives it back."""

    def __init__(self) -> None:
        self._lock, self._users, self._stack = Lock(), 0, ExitStack()

    @contextmanager
    def eager(self, stance: Callable[[str], AbstractContextManager]) -> Iterator[None]:
        """Inside, nothing compiled runs, in any thread."""
        with self._lock:
            if not self._users:
                self._stack.enter_context(stance('force_eager'))
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._stack.close()


_STANCE = _Stance()
