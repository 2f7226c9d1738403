"""Codes that gradients can move by one step: ``codes = base + h(v)`` with h from 0 to 1.

Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020,
Eq. 22 and 23. Differs from source: the choice is between the codes that a solver has found and
their nearer neighbour, which is floor and ceiling where the solver is rounding.
"""

import torch
from torch import Tensor

# Stretch of the sigmoid (gamma and zeta), so that h reaches 0 and 1 with a gradient left.
LOW_END, HIGH_END = -0.1, 1.1
# Just on the lower side: h is half at zero, where rounding goes up.
_BELOW = -1e-6


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(v) in [0, 1], half at 0 (Eq. 23)."""
    return (torch.sigmoid(v) * (HIGH_END - LOW_END) + LOW_END).clamp(0.0, 1.0)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The v of an h in [0, 1]; of 0 and 1 where the gradient is not yet gone."""
    return torch.logit((h - LOW_END) / (HIGH_END - LOW_END))


def soften_codes(codes: Tensor, position: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Returns base and v such that ``base + h(v)`` is the position and hardening gives the codes.

    Args:
        codes: Integers in [low, high], any shape.
        position: Where the weight would be without rounding, in code steps. Beyond half a step
            from its code it counts as half a step away.
        low, high: Smallest and largest code; no neighbour lies beyond.

    Returns:
        base of the dtype of ``codes``, v of the dtype of ``position``.
    """
    ahead = position - codes  # in steps
    up = ((ahead >= 0) & (codes < high)) | (codes == low)  # the neighbour is one more
    base = torch.where(up, codes, codes - 1)
    h = torch.where(up, ahead, ahead + 1).clamp(0.0, 1.0)
    v = inverse_rectified_sigmoid(h)
    # The exact side of one half, whatever the round trip loses.
    return base, torch.where(up, v.clamp(max=_BELOW), v.clamp(min=0.0))


def harden_codes(base: Tensor, v: Tensor) -> Tensor:
    """The whole codes nearest to ``base + h(v)``, in the dtype of ``base``."""
    return base + (v >= 0).to(base.dtype)
