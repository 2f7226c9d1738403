"""Splits integer codes into ternary bit planes and stitches them together again."""

import torch
from torch import Tensor


def split_bit_planes(codes: Tensor, num_bits: int) -> Tensor:
    """Splits signed codes into planes that carry the sign (paper, Eq. 3 and Figure 1).

    Args:
        codes: Any shape, integers in [-(2^(b-1)-1), 2^(b-1)-1].
        num_bits: b, 2 to 8.

    Returns:
        ``(b-1, *codes.shape)`` of the dtype of ``codes``, values -1, 0, 1; plane m weighs 2^m.
    """
    magnitude = codes.abs().to(torch.int64)
    sign = codes.sign()
    return torch.stack([(magnitude >> m & 1).to(codes.dtype) * sign for m in range(num_bits - 1)])


def stitch_bit_planes(planes: Tensor) -> Tensor:
    """Adds planes to codes, plane m with weight 2^m (paper, Eq. 9)."""
    weights = 2 ** torch.arange(planes.shape[0], device=planes.device)
    return (planes * weights.to(planes.dtype).view(-1, *[1] * (planes.dim() - 1))).sum(0)


def leading_planes(codes: Tensor, num_bits: int, narrower: int) -> Tensor:
    """The codes that the leading planes alone make: those of a narrower width.

    Equal to ``stitch_bit_planes(split_bit_planes(codes, num_bits)[num_bits - narrower:])``: one
    unit of them stands for 2^(num_bits - narrower) units of the codes.

    Args:
        codes: Integers in [-(2^(b-1)-1), 2^(b-1)-1], of an integer dtype.
        num_bits: b.
        narrower: At most b, at least 2.
    """
    return (codes.abs() >> num_bits - narrower) * codes.sign()
