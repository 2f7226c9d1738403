"""Round trips that gradients pass: the forward is today's kernel, the backward plain torch.

Gradients are those of ``s * round(clip(x / s, low, high))`` with rounding passed straight
through, whatever kernel the forward runs, whatever the size and the strides.

Source: Esser et al., Learned Step Size Quantization, ICLR 2020, Eq. 1 to 5; Bhalgat et al., LSQ+,
CVPR workshops 2020, Eq. 5 and 6 (the zero point). Differs from source: a zero point is a whole
code, a value at the very end of the range counts as inside, and the factor on the scale's gradient
(section 2.2) is left to whoever learns it (``gradient_times``).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.affine import along_channels, fake_quantize, product_input
from mmbitsplit.structures import QParams


def fake_quantize_ste(x: Tensor, qparams: QParams, channel_dim: int = 1) -> Tensor:
    """``fake_quantize``, to the last bit, with gradients for ``x``, scale and zero point.

    Args:
        x: Any shape, real.
        qparams: Its scale and zero point may require gradients.
        channel_dim: The dimension of ``x`` that per-channel parameters run along.
    """
    return _with_gradient(fake_quantize, x, qparams, channel_dim, real=True)


def product_input_ste(x: Tensor, qparams: QParams, channel_dim: int = 1) -> Tensor:
    """``product_input``, to the last bit, with gradients for ``x``, scale and zero point.

    Where ``qparams.unit``, codes come out and their gradients are those of ``x / scale``. Whoever
    multiplies them by the scale again gets the gradients of ``fake_quantize_ste``.
    """
    return _with_gradient(product_input, x, qparams, channel_dim, real=not qparams.unit)


def round_codes_ste(position: Tensor, low: Tensor | float, high: Tensor | float,
                    everywhere: bool = False) -> Tensor:
    """``clamp(round(position), low, high)`` whose gradient is that of the position.

    Args:
        position: In code steps, any shape.
        low, high: Smallest and largest code.
        everywhere: Gradients pass beyond the range too, so that what lies there may come back.
    """
    return _RoundCodes.apply(position, low, high, everywhere)  # type: ignore[no-untyped-call]


def gradient_times(value: Tensor, factor: float) -> Tensor:
    """The value as it is, its gradient multiplied by a factor."""
    return _GradientTimes.apply(value, factor)  # type: ignore[no-untyped-call]


def _with_gradient(forward: Callable[[Tensor, QParams, int], Tensor], x: Tensor, qparams: QParams,
                   channel_dim: int, real: bool) -> Tensor:
    wanted = (x, qparams.scale, qparams.zero_point)
    if torch.is_grad_enabled() and any(value.requires_grad for value in wanted):
        return _StraightThrough.apply(  # type: ignore[no-untyped-call]
            *wanted, qparams, channel_dim, forward, real)
    return forward(x, qparams, channel_dim)


class _StraightThrough(torch.autograd.Function):
    """``forward`` of ``(x, qparams, channel_dim)``; scale and zero point are given a second time,
    by themselves, because autograd sees tensors among the arguments alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qparams: QParams,
                channel_dim: int, forward: Callable[[Tensor, QParams, int], Tensor], real: bool,
                ) -> Tensor:
        # Nothing inside is recorded; detached, because kernels refuse tensors that require grad.
        qparams = replace(qparams, scale=scale.detach(), zero_point=zero_point.detach())
        # Saved, as the scale is: what is learnt in place between forward and backward is an error.
        ctx.save_for_backward(x, scale, zero_point)
        ctx.qparams, ctx.channel_dim, ctx.real = qparams, channel_dim, real
        # Not a view of what a kernel has made: the model may add to it in place.
        made = forward(x.detach(), qparams, channel_dim)
        return torch.ops.aten._unsafe_view(made, made.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        shift = along_channels(zero_point, x, ctx.channel_dim)
        low, high = (along_channels(bound, x, ctx.channel_dim) - shift
                     for bound in ctx.qparams.limits())
        step = along_channels(scale, x, ctx.channel_dim)
        place = x / step  # in code units
        inside = (place >= low) & (place <= high)
        passed = torch.where(inside, grad, 0.0)
        grad_x = grad_scale = grad_zero_point = None
        if ctx.needs_input_grad[0]:  # Eq. 5
            grad_x = passed if ctx.real else passed / step
        if ctx.needs_input_grad[1]:
            if ctx.real:  # Eq. 3
                codes = place.clamp(low, high)
                each = grad * codes.round() - passed * codes
            else:
                each = -passed * place / step
            grad_scale = _sum_to(each, scale, ctx.channel_dim)
        if ctx.needs_input_grad[2]:  # both ends of the range move; codes inside mean what they did
            each = passed - grad
            grad_zero_point = _sum_to(each * step if ctx.real else each, zero_point,
                                      ctx.channel_dim)
        return grad_x, grad_scale, grad_zero_point, None, None, None, None


class _RoundCodes(torch.autograd.Function):
    """See ``round_codes_ste``."""

    @staticmethod
    def forward(ctx: Any, position: Tensor, low: Tensor | float, high: Tensor | float,
                everywhere: bool) -> Tensor:
        ctx.everywhere = everywhere
        if not everywhere:
            ctx.save_for_backward((position >= low) & (position <= high))
        return position.round().clamp(low, high)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        passed = grad if ctx.everywhere else torch.where(ctx.saved_tensors[0], grad, 0.0)
        return passed, None, None, None


class _GradientTimes(torch.autograd.Function):
    """See ``gradient_times``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.factor, None


def _sum_to(values: Tensor, scale: Tensor, channel_dim: int) -> Tensor:
    """Adds up what belongs to each scale, (1,) or (C,)."""
    if scale.numel() == 1:
        return values.sum().reshape(scale.shape).to(scale)
    others = [dim for dim in range(values.dim()) if dim != channel_dim % values.dim()]
    return (values.sum(others) if others else values).to(scale)
