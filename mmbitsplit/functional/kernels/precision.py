"""Float32 that is float32: products and convolutions without TF32 or bfloat16 inside.

torch computes convolutions on NVIDIA GPUs since Ampere in TF32 by default (10 bits of mantissa),
and ``torch.set_float32_matmul_precision`` does the like to matrix products, on CPUs too. An error
of a thousandth is nothing to a float network; but it hides whether a layer does what its weight
says, and it rounds ``scale * code``, so that a layer would not compute what its codes say.

Source: torch's notes on CUDA semantics, section on TensorFloat-32, and on ``fp32_precision``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

FULL = 'ieee'
# Operators that may be told to compute float32 in less, by their backend (torch 2.9 and later).
_OPERATORS = {'cudnn': ('conv', 'rnn'), 'cuda': ('matmul',), 'mkldnn': ('conv', 'rnn', 'matmul')}


class _Switch(NamedTuple):
    """How float32 is computed somewhere: how to read it, to set it, and what means in full."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    full: Any


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, float32 products and convolutions are computed in full on every device.

    The switches are the process's, not a thread's; afterwards they are as they were.
    """
    changed: list[tuple[_Switch, Any]] = []
    try:
        for switch in _switches():
            changed.append((switch, switch.read()))
            switch.write(switch.full)
        yield
    finally:
        for switch, value in reversed(changed):
            switch.write(value)


def autocast_dtype(kind: str, device: torch.device) -> torch.dtype | None:
    """Returns the dtype that autocast gives the outputs of a layer, ``None`` where it is off.

    Asked of torch with a layer of one input and one output, for its lists differ by device.

    Args:
        kind: ``'linear'``, ``'conv2d'`` or ``'conv_transpose2d'``.
        device: Of the layer.
    """
    if not torch.is_autocast_enabled(device.type):
        return None
    one = torch.zeros((1, 1) if kind == 'linear' else (1, 1, 1, 1), device=device,
                      dtype=torch.float32)
    return getattr(torch.nn.functional, kind)(one, one).dtype


def _switches() -> Iterator[_Switch]:
    """The older switches first, where they can still be read: they move the newer ones along.

    torch refuses to read the older ones as soon as someone has set the newer ones to something
    that those cannot say, so a forward that reads them must find them in agreement.
    """
    for switch in (
            _Switch(lambda: torch.backends.cudnn.allow_tf32,
                    partial(setattr, torch.backends.cudnn, 'allow_tf32'), False),
            _Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision,
                    'highest')):
        try:
            switch.read()
        except RuntimeError:  # the newer ones below say it all
            continue
        yield switch
    for backend, operators in _OPERATORS.items():
        for name in operators:
            operator = getattr(getattr(torch.backends, backend), name, None)
            if getattr(operator, 'fp32_precision', FULL) in ('tf32', 'bf16'):
                yield _Switch(partial(getattr, operator, 'fp32_precision'),
                              partial(setattr, operator, 'fp32_precision'), FULL)
