"""Residual streams in codes: what a module gives is rounded before anything reads it.

A layer rounds its own input alone; a skip connection beside it would carry real values. So the
module that gives the tensor (a block after its addition, an activation function) gets a hook that
rounds its output, for all that read it. Scale and zero point are buffers of that module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional import fake_quantize_ste
from mmbitsplit.structures import QParams

_SCALE, _ZERO_POINT, _LIMITS = 'stream_scale', 'stream_zero_point', '_stream_limits'
# What is done instead of rounding, in the forwards that run inside ``streams_through``.
_instead: ContextVar[Callable[[nn.Module, Tensor], Tensor] | None] = ContextVar(
    'instead_of_rounding_streams', default=None)


def round_stream(module: nn.Module, qparams: QParams) -> None:
    """Rounds what a module gives from now on.

    Args:
        module: Any that gives one tensor.
        qparams: (1,) scale and zero point.
    """
    leave_stream(module)
    device = next((value.device for value in module.parameters()), qparams.scale.device)
    module.register_buffer(_SCALE, qparams.scale.detach().to(device, torch.float32, copy=True))
    module.register_buffer(_ZERO_POINT, qparams.zero_point.to(device, torch.int32))
    setattr(module, _LIMITS, (qparams.quant_min, qparams.quant_max))
    module.register_forward_hook(_rounded)


def leave_stream(module: nn.Module) -> None:
    """Takes ``round_stream`` back; nothing where there was none."""
    for key, hook in list(module._forward_hooks.items()):
        if hook is _rounded:
            del module._forward_hooks[key]
    for name in (_SCALE, _ZERO_POINT, _LIMITS):
        if hasattr(module, name):
            delattr(module, name)


def stream_qparams(module: nn.Module) -> QParams | None:
    """How a module's output is rounded, ``None`` where it is not."""
    limits = getattr(module, _LIMITS, None)
    if limits is None:
        return None
    return QParams(getattr(module, _SCALE), getattr(module, _ZERO_POINT), *limits, unit=False)


def blank_stream(module: nn.Module, quant_min: int, quant_max: int) -> None:
    """Makes room for the state of a stream, before it is loaded."""
    round_stream(module, QParams(torch.ones(1), torch.zeros(1, dtype=torch.int32),
                                 quant_min, quant_max, unit=False))


def rounded_streams(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules of a model that give rounded tensors, with their names."""
    return ((name, module) for name, module in model.named_modules()
            if stream_qparams(module) is not None)


def _as_it_is(module: nn.Module, x: Tensor) -> Tensor:
    return x


@contextmanager
def streams_through(instead: Callable[[nn.Module, Tensor], Tensor] = _as_it_is) -> Iterator[None]:
    """Inside, forwards of this thread (or greenlet) do something else than round streams.

    Args:
        instead: Given the module and what it gives; nothing is done when not given, as in the
            float model: products of activations are float then, too.
    """
    token = _instead.set(instead)
    try:
        yield
    finally:
        _instead.reset(token)


def in_float_model() -> bool:
    """Whether a forward runs inside ``streams_through`` as the float model does."""
    return _instead.get() is _as_it_is


def _rounded(module: nn.Module, args: Any, output: Any) -> Tensor:
    """The hook; it knows its module by what it is given, so that copies of a model work."""
    if not isinstance(output, Tensor):
        raise ValueError(f'A {type(module).__name__} whose output is rounded gave '
                         f'{type(output).__name__} instead of a tensor; leave it in float with '
                         "placement='inputs' or num_bits=null in the streams of the plan.")
    instead = _instead.get()
    if instead is not None:
        return instead(module, output)
    return rounded(module, output)


def rounded(module: nn.Module, output: Tensor) -> Tensor:
    """What a stream carries of a module's output, with gradients for it."""
    return fake_quantize_ste(output.float(), stream_qparams(module)).to(output.dtype)
