"""One rounding of each weight for all widths: up or down from the floor of each.

Source: Xu et al., PTMQ: Post-training Multi-Bit Quantization of Neural Networks, AAAI 2024, Eq. 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.affine import code_range


def shared_codes(base: Tensor, rounding: Tensor, num_bits: int) -> Tensor:
    """``clip(base + R, -2^(b-1), 2^(b-1) - 1)`` (Eq. 3); gradients stop at the ends.

    Args:
        base: ``floor(w / s_b)`` of a width, any shape.
        rounding: R in [0, 1], the same for all widths.
        num_bits: The width b.
    """
    return (base + rounding).clamp(*code_range(num_bits, signed=True, narrow_range=False))


def first_rounding(positions: Sequence[Tensor]) -> Tensor:
    """R to begin with: the mean over widths of how far each weight is above its floor.

    Of a single width the weight then begins as the float weight. Of several it does so on average
    only; where a width would clip the weight it says nothing of it.

    Args:
        positions: ``w / s_b`` of each width, of one shape.
    """
    parts = torch.stack([position - position.floor() for position in positions])
    return parts.mean(0).clamp(0.0, 1.0)
