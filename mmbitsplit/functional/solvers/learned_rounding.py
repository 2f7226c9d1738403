"""What roundings are learned by: the error of outputs, and a push that ends at 0 or 1.

Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020, Eq.
21 to 25; h(V) is ``quantizers.soft_rounding``.
"""

import torch
from torch import Tensor

BETA_START, BETA_END = 20.0, 2.0


def rounding_regulariser(h: Tensor, beta: float) -> Tensor:
    """Sum of ``1 - |2 h - 1|^beta`` (Eq. 24): 0 where all are 0 or 1, one more for each half.

    A large beta leaves all but those near 0 and 1 alone, a small one pushes all apart.

    Args:
        h: Any shape, in [0, 1].
        beta: Positive.

    Returns:
        A scalar.
    """
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def beta_at(step: int, steps: int, warm_start: float = 0.2, start: float = BETA_START,
            end: float = BETA_END) -> float | None:
    """Beta of a step: along a line from ``start`` to ``end``, after a warm start without.

    The paper gives the ends and that beta falls; the line is that of BRECQ's code.

    Args:
        step: From 0.
        steps: All of them.
        warm_start: Part of the steps that have no regulariser.
        start, end: At the first step after the warm start, and where the last one ends.

    Returns:
        ``None`` for no regulariser.
    """
    first = warm_start * steps
    if step < first:
        return None
    return end + (start - end) * (1 - (step - first) / (steps - first))


def reconstruction_loss(output: Tensor, wanted: Tensor, channel_dim: int) -> Tensor:
    """Mean over images and places of the squared error summed over channels (Eq. 21 and 25).

    Args:
        output, wanted: Of one shape.
        channel_dim: Their dimension that channels run along.

    Returns:
        A scalar.
    """
    return (output - wanted).square().sum(channel_dim).mean()


def decided_share(h: Tensor) -> float:
    """Part of the roundings that are 0 or 1; 1 where there are none."""
    return float(((h == 0) | (h == 1)).to(torch.float64).mean()) if h.numel() else 1.0
