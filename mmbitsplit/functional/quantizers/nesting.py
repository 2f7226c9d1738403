"""Codes, offsets and input scales of narrower widths, made of those of the widest."""

from dataclasses import replace

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.affine import code_range
from mmbitsplit.functional.quantizers.bit_planes import leading_planes
from mmbitsplit.structures import QParams
from mmbitsplit.structures.solution import Nesting

# How far scales of ``unit`` inputs may be from a multiple of each other, relative.
_LIKE = 1e-5


def narrower_codes(codes: Tensor, num_bits: int, narrower: int, nesting: Nesting) -> Tensor:
    """The codes of a narrower width.

    ``'planes'``: the leading bit planes, ``sign * (|q| >> k)`` (``leading_planes``). ``'floor'``:
    ``q >> k`` in two's complement, ``k = num_bits - narrower``; with weights
    ``scale * (q + 1/2)`` the cells of a width are halves of those of the next narrower.

    Args:
        codes: Any shape, integer dtype, codes of ``num_bits``.
        num_bits: Width of the codes.
        narrower: At most ``num_bits``, at least 2.
        nesting: Which of the two.
    """
    if nesting == 'planes':
        return leading_planes(codes, num_bits, narrower)
    return codes >> num_bits - narrower


def midrise_offset(scale: Tensor) -> Tensor:
    """What is added to every weight of ``'floor'`` codes: half a step, ``scale * (q + 1/2)``.

    Args:
        scale: (..., out_channels) real units a code step.
    """
    return scale / 2


def is_midrise(scale: Tensor, offset: Tensor | None) -> bool:
    """Whether an offset is the half step of ``'floor'`` codes, but for the rounding of float32.

    Args:
        scale: (out_channels,) real units a code step.
        offset: (out_channels,) or ``None``.
    """
    return offset is not None and torch.allclose(offset, midrise_offset(scale), rtol=1e-5, atol=0)


def midrise_codes(weight: Tensor, scale: Tensor, num_bits: int) -> Tensor:
    """The ``'floor'`` codes nearest to real weights: ``clamp(floor(weight / scale))``.

    Args:
        weight: Any shape.
        scale: Broadcast to it, real units a code step.
        num_bits: 2 to 8.

    Returns:
        int8, from -2^(b-1) to 2^(b-1)-1.
    """
    low, high = code_range(num_bits, signed=True)
    return torch.floor(weight / scale).clamp_(low, high).to(torch.int8)


def input_factor(qparams: QParams, widest: QParams) -> float:
    """By what a weight that carries the scale of its widest input is multiplied at another width.

    In float64 of the first channel's float32 scales, so that who stores that scale (or makes the
    others with ``narrower_qparams``) gets the same bits.

    Args:
        qparams: Of the other width, ``unit``.
        widest: Of the widest, ``unit``.

    Raises:
        ValueError: The scales are no multiple of each other.
    """
    scale, base = qparams.scale.detach().double(), widest.scale.detach().double()
    factor = float(scale[0] / base[0])
    if scale.shape != base.shape or not torch.allclose(scale, base * factor, rtol=_LIKE, atol=0):
        raise ValueError(f'The input scales of {qparams.num_bits} bits are no multiple of those of '
                         f'{widest.num_bits} bits, which the weight carries (unit inputs). Make '
                         'them with functional.narrower_qparams, or use unit=False.')
    return factor


def narrower_qparams(widest: QParams, factor: float, num_bits: int) -> QParams:
    """Input quantization of a narrower width: scales times a factor, zero points divided by it.

    Args:
        widest: Of the widest.
        factor: Scale of a code step in parts of the widest's; the nearest one at which the first
            channel's scale is a float32 is taken (``input_factor`` gives it).
        num_bits: At most the widest's.

    Raises:
        ValueError: Channels differ in width.
    """
    if widest.channel_max is not None:
        raise ValueError("Inputs whose channels differ in width (bit_allocation='aciq') have no "
                         "narrower widths; use bit_allocation='uniform'.")
    base = widest.scale.detach().double()
    factor = float((base[0] * factor).float().double() / base[0])
    narrow = widest.quant_min == -widest.quant_max
    low, high = code_range(num_bits, signed=widest.quant_min < 0, narrow_range=narrow)
    zero_point = torch.round(widest.zero_point.double() / factor).clamp_(low, high)
    return replace(widest, scale=(base * factor).to(widest.scale.dtype),
                   zero_point=zero_point.to(widest.zero_point.dtype), quant_min=low,
                   quant_max=high)


def odd_codes(codes: Tensor) -> Tensor:
    """``2 q + 1``: the same weights as ``'floor'`` codes at half the scale, without an offset.

    Args:
        codes: int8 of at most 7 bits.
    """
    return 2 * codes + 1
