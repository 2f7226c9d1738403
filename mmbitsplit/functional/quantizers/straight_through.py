"""Round trips that gradients pass: the forward is today's kernel, the backward plain torch.

Gradients are those of ``s * round(clip(x / s, low, high))`` with rounding passed straight
through, whatever kernel the forward runs, whatever the size and the strides.

Source: Esser et al., Learned Step Size Quantization, ICLR 2020, Eq. 1 to 5. Differs from source:
codes have a zero point, a value at the very end of the range counts as inside, and the factor on
the scale's gradient (section 2.2) is left to whoever learns it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.affine import along_channels, fake_quantize, product_input
from mmbitsplit.structures import QParams


def fake_quantize_ste(x: Tensor, qparams: QParams, channel_dim: int = 1) -> Tensor:
    """``fake_quantize``, to the last bit, with gradients for ``x`` and ``qparams.scale``.

    Args:
        x: Any shape, real.
        qparams: Its scale may require a gradient; the zero point gets none.
        channel_dim: The dimension of ``x`` that per-channel parameters run along.
    """
    return _with_gradient(fake_quantize, x, qparams, channel_dim, real=True)


def product_input_ste(x: Tensor, qparams: QParams, channel_dim: int = 1) -> Tensor:
    """``product_input``, to the last bit, with gradients for ``x`` and ``qparams.scale``.

    Where ``qparams.unit``, codes come out and their gradients are those of ``x / scale``. Whoever
    multiplies them by the scale again gets the gradients of ``fake_quantize_ste``.
    """
    return _with_gradient(product_input, x, qparams, channel_dim, real=not qparams.unit)


def _with_gradient(forward: Callable[[Tensor, QParams, int], Tensor], x: Tensor, qparams: QParams,
                   channel_dim: int, real: bool) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or qparams.scale.requires_grad):
        return _StraightThrough.apply(  # type: ignore[no-untyped-call]
            x, qparams.scale, qparams, channel_dim, forward, real)
    return forward(x, qparams, channel_dim)


class _StraightThrough(torch.autograd.Function):
    """``forward`` of ``(x, qparams, channel_dim)``; the scale is given a second time, by itself,
    because autograd sees tensors among the arguments alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qparams: QParams, channel_dim: int,
                forward: Callable[[Tensor, QParams, int], Tensor], real: bool) -> Tensor:
        # Nothing inside is recorded; detached, because kernels refuse tensors that require grad.
        qparams = replace(qparams, scale=scale.detach())
        ctx.save_for_backward(x, scale)
        ctx.qparams, ctx.channel_dim, ctx.real = qparams, channel_dim, real
        return forward(x.detach(), qparams, channel_dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        zero_point = along_channels(ctx.qparams.zero_point, x, ctx.channel_dim)
        low, high = (along_channels(bound, x, ctx.channel_dim) - zero_point
                     for bound in ctx.qparams.limits())
        step = along_channels(scale, x, ctx.channel_dim)
        place = x / step  # in code units
        inside = (place >= low) & (place <= high)
        passed = torch.where(inside, grad, 0.0)
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:  # Eq. 5
            grad_x = passed if ctx.real else passed / step
        if ctx.needs_input_grad[1]:
            if ctx.real:  # Eq. 3
                codes = place.clamp(low, high)
                each = grad * codes.round() - passed * codes
            else:
                each = -passed * place / step
            grad_scale = _sum_to(each, scale, ctx.channel_dim)
        return grad_x, grad_scale, None, None, None, None


def _sum_to(values: Tensor, scale: Tensor, channel_dim: int) -> Tensor:
    """Adds up what belongs to each scale, (1,) or (C,)."""
    if scale.numel() == 1:
        return values.sum().reshape(scale.shape).to(scale)
    others = [dim for dim in range(values.dim()) if dim != channel_dim % values.dim()]
    return (values.sum(others) if others else values).to(scale)
