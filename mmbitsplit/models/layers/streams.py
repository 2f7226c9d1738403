"""Residual streams in codes: what a module gives is rounded before anything reads it.

A layer rounds its own input alone; a skip connection beside it would carry real values. So the
module that gives the tensor (a block after its addition, an activation function) gets a hook that
rounds its output, for all that read it. Scale and zero point are buffers of that module.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional import fake_quantize_ste
from mmbitsplit.models.layers.quantizers.learning import check_width
from mmbitsplit.structures import QParams

_SCALE, _ZERO_POINT, _LIMITS = 'stream_scale', 'stream_zero_point', '_stream_limits'
IN_USE = '_stream_in_use'  # calibration and users change it, forwards never do
# What is done instead of rounding, in the forwards that run inside ``streams_through``.
_instead: ContextVar[Callable[[nn.Module, Tensor], Tensor] | None] = ContextVar(
    'instead_of_rounding_streams', default=None)


def round_stream(module: nn.Module, qparams: QParams, narrower: Sequence[QParams] = ()) -> None:
    """Rounds what a module gives from now on.

    Args:
        module: Any that gives one tensor.
        qparams: (1,) scale and zero point.
        narrower: Of fewer bits, that it can be switched to. Their scales and zero points follow
            the first in the module's buffers.
    """
    leave_stream(module)
    ordered = (qparams, *sorted(narrower, key=lambda one: -one.num_bits))
    if len({one.num_bits for one in ordered}) < len(ordered):
        raise ValueError(f'stream widths {[one.num_bits for one in ordered]} hold one twice; give '
                         'each width once.')
    device = next((value.device for value in module.parameters()), qparams.scale.device)
    module.register_buffer(_SCALE, torch.cat([one.scale.detach() for one in ordered]).to(
        device, torch.float32, copy=True))
    module.register_buffer(_ZERO_POINT, torch.cat([one.zero_point for one in ordered]).to(
        device, torch.int32))
    setattr(module, _LIMITS, tuple((one.quant_min, one.quant_max) for one in ordered))
    setattr(module, IN_USE, 0)
    module.register_forward_hook(_rounded)


def leave_stream(module: nn.Module) -> None:
    """Takes ``round_stream`` back; nothing where there was none."""
    for key, hook in list(module._forward_hooks.items()):
        if hook is _rounded:
            del module._forward_hooks[key]
    for name in (_SCALE, _ZERO_POINT, _LIMITS, IN_USE):
        if hasattr(module, name):
            delattr(module, name)


def stream_qparams(module: nn.Module) -> QParams | None:
    """How a module's output is rounded now, ``None`` where it is not."""
    if not is_rounded(module):
        return None
    return _of_index(module, getattr(module, IN_USE))


def all_stream_qparams(module: nn.Module) -> tuple[QParams, ...]:
    """Those of all widths, the widest first; of a module whose output is rounded."""
    return tuple(_of_index(module, index) for index in range(len(getattr(module, _LIMITS))))


def _of_index(module: nn.Module, index: int) -> QParams:
    limits = getattr(module, _LIMITS)
    scale, zero_point = getattr(module, _SCALE), getattr(module, _ZERO_POINT)
    if len(limits) > 1:
        scale, zero_point = scale[index:index + 1], zero_point[index:index + 1]
    return QParams(scale, zero_point, *limits[index], unit=False)


def stream_widths(module: nn.Module) -> tuple[tuple[int, ...], int]:
    """The widths of a rounded stream, rising, and that in use."""
    widths = [one.num_bits for one in all_stream_qparams(module)]
    return tuple(reversed(widths)), widths[getattr(module, IN_USE)]


def use_stream(module: nn.Module, stream: int) -> None:
    """Switches a rounded stream to another width.

    Args:
        module: Whose output is rounded.
        stream: Of its widths.

    Raises:
        ValueError: There is no such width.
    """
    widths, _ = stream_widths(module)
    check_width(stream, widths)
    setattr(module, IN_USE, widths[::-1].index(stream))


def blank_stream(module: nn.Module, quant_min: int, quant_max: int,
                 narrower: Sequence[Sequence[int]] = ()) -> None:
    """Makes room for the state of a stream, before it is loaded.

    Args:
        module: That gives it.
        quant_min, quant_max: Smallest and largest code of the widest width.
        narrower: Both of the others, the wider first.
    """
    blanks = [QParams(torch.ones(1), torch.zeros(1, dtype=torch.int32), *limits, unit=False)
              for limits in ((quant_min, quant_max), *narrower)]
    round_stream(module, blanks[0], blanks[1:])


def describe_stream(module: nn.Module) -> dict[str, Any]:
    """What ``blank_stream`` is to be given, in plain values."""
    (low, high), *narrower = getattr(module, _LIMITS)
    more = {'narrower': [list(limits) for limits in narrower]} if narrower else {}
    return {'quant_min': low, 'quant_max': high, **more}


def rounded_streams(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules of a model that give rounded tensors, with their names."""
    return ((name, module) for name, module in model.named_modules()
            if is_rounded(module))


def is_rounded(module: nn.Module) -> bool:
    """Whether what a module gives is rounded."""
    return _LIMITS in vars(module)  # not by getattr: torch takes long to say that there is none


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
