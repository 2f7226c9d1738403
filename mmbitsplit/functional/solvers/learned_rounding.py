"""What roundings are learned by: the error of outputs, and a push that ends at 0 or 1.

Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020, Eq.
21 to 25; h(V) is ``quantizers.soft_rounding``.
"""

import math
from typing import Literal

import torch
from torch import Tensor

BETA_START, BETA_END = 20.0, 2.0
Schedule = Literal['constant', 'cosine', 'linear']


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
        steps: All of them; from there on it is ``end``.
        warm_start: Part of the steps that have no regulariser.
        start, end: At the first step after the warm start, and where the last one ends.

    Returns:
        ``None`` for no regulariser.
    """
    first = warm_start * steps
    if step >= steps:
        return end
    if step < first:
        return None
    return end + (start - end) * (1 - (step - first) / (steps - first))


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What a learning rate is multiplied by: 1 at the first step, 0 where the last one ends.

    Args:
        schedule: ``'constant'`` is 1 throughout, ``'cosine'`` half a wave, ``'linear'`` a line.
        step: From 0; from ``steps`` on it is what it ends with.
        steps: All of them.
    """
    part = min(1.0, step / max(1, steps))
    if schedule == 'cosine':
        return 0.5 * (1 + math.cos(math.pi * part))
    return 1.0 - part if schedule == 'linear' else 1.0


def reconstruction_loss(output: Tensor, wanted: Tensor, channel_dim: int, norm: float = 2.0,
                        importance: Tensor | None = None) -> Tensor:
    """Mean over images and places of the squared error summed over channels (Eq. 21 and 25).

    Args:
        output, wanted: Of one shape.
        channel_dim: Their dimension that channels run along.
        norm: The power that errors are raised to instead of 2.
        importance: (C,) what the errors of each channel are multiplied by, 1 if ``None``.

    Returns:
        A scalar.
    """
    error = output - wanted
    error = error.square() if norm == 2.0 else error.abs().pow(norm)
    if importance is not None:
        error = error * along(importance, error, channel_dim)
    return error.sum(channel_dim).mean()


def along(values: Tensor, like: Tensor, dim: int) -> Tensor:
    """A vector as it is multiplied along one dimension of another tensor."""
    shape = [1] * like.dim()
    shape[dim] = -1
    return values.to(like).view(shape)


def undecided(h: Tensor) -> Tensor:
    """Which roundings are neither 0 nor 1, booleans."""
    return (h != 0) & (h != 1)


def decided_share(h: Tensor) -> float:
    """Part of the roundings that are 0 or 1; 1 where there are none."""
    return float((~undecided(h)).to(torch.float64).mean()) if h.numel() else 1.0


def most_decided(h: Tensor, share: float = 0.5) -> Tensor:
    """Of the roundings that are neither 0 nor 1, those nearest to it.

    Args:
        h: Any shape, in [0, 1].
        share: Part of the undecided ones, rounded up; those as near as the last of them are too.

    Returns:
        Booleans, shape of ``h``.
    """
    open_ones = undecided(h)
    count = int(open_ones.sum())
    if not count:
        return open_ones
    near = (h - 0.5).abs()
    least = near[open_ones].sort(descending=True).values[math.ceil(share * count) - 1]
    return open_ones & (near >= least)
