"""Affine quantization: the one definition of integer ranges and of the round trip."""

import torch
from torch import Tensor

from mmbitsplit.functional.kernels.round_trip import round_rows
from mmbitsplit.structures import QParams


def code_range(num_bits: int, *, signed: bool, narrow_range: bool = False) -> tuple[int, int]:
    """Returns the smallest and largest code.

    Args:
        num_bits: Width of a code, 2 to 8.
        signed: Two's complement, else starting at 0.
        narrow_range: Symmetric: the most negative code is left out (weights).
    """
    if not signed:
        return 0, 2 ** num_bits - 1
    largest = 2 ** (num_bits - 1) - 1
    return (-largest if narrow_range else -largest - 1), largest


def quantize(x: Tensor, qparams: QParams, channel_dim: int = 1) -> Tensor:
    """Rounds real values to codes, kept in the dtype of ``x``.

    Args:
        x: Any shape, real.
        qparams: Scale and zero point, one or one a channel.
        channel_dim: The dimension of ``x`` that per-channel parameters run along.

    Returns:
        Codes in [quant_min, quant_max], shape and dtype of ``x``; ties go to the even code.
    """
    scale, zero_point = _aligned(x, qparams, channel_dim)
    low, high = (along_channels(bound, x, channel_dim) for bound in qparams.limits())
    return torch.div(x, scale).round_().add_(zero_point).clamp_(low, high)


def dequantize(codes: Tensor, qparams: QParams, channel_dim: int = 1) -> Tensor:
    """Turns codes, integers of any dtype, into real values: (code - zero_point) * scale."""
    if not codes.is_floating_point():
        codes = codes.to(qparams.scale.dtype)
    scale, zero_point = _aligned(codes, qparams, channel_dim)
    return (codes - zero_point) * scale


def fake_quantize(x: Tensor, qparams: QParams, channel_dim: int = 1) -> Tensor:
    """Round trip: real values on the grid of the codes."""
    return dequantize(quantize(x, qparams, channel_dim), qparams, channel_dim)


def product_input(x: Tensor, qparams: QParams, channel_dim: int = 1) -> Tensor:
    """Returns what enters the product: codes less zero point, or dequantized values.

    Differs from ``fake_quantize`` when ``qparams.unit``: the scale is in the weights then
    (paper, Eq. 12).
    """
    scale, zero_point = _aligned(x, qparams, channel_dim)
    # Zero points are whole: clamping first and leaving them out gives the same codes.
    low, high = (along_channels(bound, x, channel_dim) - zero_point for bound in qparams.limits())
    scale, low, high = torch.broadcast_tensors(scale, low, high)
    last = channel_dim in (-1, x.dim() - 1)
    if not x.is_contiguous() or not x.numel() or (last and scale.numel() > 1):
        codes = torch.div(x, scale).round_().clamp_(low, high)  # keeps the strides of x
    else:
        rows = x.view(-1, x.shape[-1]) if last else x.flatten(0, channel_dim).flatten(1)
        codes = round_rows(rows, scale.flatten(), low.flatten(), high.flatten()).view(x.shape)
    return codes if qparams.unit else codes.mul_(scale)


def _aligned(x: Tensor, qparams: QParams, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Views scale and zero point so that they broadcast along ``channel_dim`` of ``x``."""
    return (along_channels(qparams.scale, x, channel_dim),
            along_channels(qparams.zero_point, x, channel_dim))


def along_channels(values: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """Views (1,) or (C,) values so that they broadcast along a dimension of ``x``, in its dtype."""
    shape = [1] * x.dim()
    shape[channel_dim] = -1
    return values.to(x).view(shape)
