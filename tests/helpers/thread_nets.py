"""A network that sets state of its thread inside its forward, for tests."""

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmbitsplit.passes.thread_state import ThreadState


class Counting(TorchFunctionMode):
    """Sees functions of torch that are called under it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def doubled():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _both(one, other):
    with one(), other():
        yield


CONTEXTS = {
    'enable_grad': torch.enable_grad,
    'inference_mode': torch.inference_mode,
    'normal mode': lambda: torch.inference_mode(False),
    'default dtype': doubled,
    'device': lambda: torch.device('meta'),
    'function mode': Counting,
    'deterministic': deterministic,
    'two at once': lambda: _both(torch.enable_grad, doubled),
    'inference and autocast off': lambda: _both(
        torch.inference_mode, lambda: torch.autocast('cpu', enabled=False)),
}


def found():
    return ThreadState.now()


class Inside(nn.Module):
    """Runs two of its layers inside a context, and says how it finds things there and after."""

    def __init__(self, context=nullcontext, stumble=None):
        super().__init__()
        self.context, self.stumble = context, stumble
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.c, self.d = nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        before = found()
        x = torch.relu(self.a(x))
        with self.context():
            inside = found()
            x = torch.relu(self.b(x))
            assert found() == inside
            x = torch.relu(self.c(x))
            assert found() == inside
            if self.stumble:
                self.stumble()
        assert found() == before
        return self.d(x.float().mean((2, 3)))
