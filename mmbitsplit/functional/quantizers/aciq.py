"""Analytic clipping, bit allocation and weight correction.

Source: Banner et al., Post training 4-bit quantization of convolutional networks for
rapid-deployment, NeurIPS 2019 (ACIQ), and the authors' code where the paper leaves a choice.
"""

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from mmbitsplit.structures.options import check_value
from mmbitsplit.structures.widths import MAX_BITS, MIN_BITS

Distribution = Literal['gauss', 'laplace']


@functools.lru_cache
def clipping_constant(distribution: str, num_bits: int, *, half_range: bool = False) -> float:
    """Returns where to clip, in units of the spread of the distribution.

    Minimises the expected squared error of clipping at ``+-a`` and rounding to ``2^b`` values
    evenly in between: for a Laplace density of width 1 ``2 exp(-a) + a^2 / (3 4^b)``, for a
    normal density ``2 E[(x - a)^2; x > a] + a^2 / (3 4^b)``. The root of the derivative is found
    by bisection.

    Args:
        distribution: ``'gauss'`` (the spread is the standard deviation) or ``'laplace'`` (the mean
            absolute deviation).
        num_bits: b, at least 1.
        half_range: The codes share the range from 0 to a only, as after a ReLU: one bit more.

    Source: section 3; the constants of the authors' code are these, cut to two digits.
    """
    check_value('distribution', distribution, Distribution)
    steps = 3 * 4.0 ** (num_bits + half_range)

    def slope(a: float) -> float:  # half the derivative, rising
        if distribution == 'laplace':
            return a / steps - math.exp(-a)
        tail = 0.5 * math.erfc(a / math.sqrt(2))
        density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        return a / steps - 2 * (density - a * tail)

    low, high = 0.0, 64.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return high


def spread(values: Tensor, distribution: str, *, rectified: bool, centred: bool) -> Tensor:
    """Estimates the width of each row's distribution.

    Args:
        values: (C, S).
        distribution: See ``clipping_constant``.
        rectified: The values went through a ReLU; what it cut off is taken to mirror the rest
            about zero, so only the positive ones count.
        centred: Measure deviations from the mean instead of from zero.

    Returns:
        (C,) float64, zero for a row of equal values.

    Differs from source: the authors measure before the ReLU, where a layer cannot look.
    """
    values = values.double()
    if centred:
        values = values - values.mean(1, keepdim=True)
    count = (values > 0).sum(1).clamp(min=1) if rectified else values.shape[1]
    if distribution == 'laplace':
        return values.abs().sum(1) / count
    return (values.square().sum(1) / count).sqrt()


def allocate_bits(width: Tensor, num_bits: int) -> Tensor:
    """Gives wide channels more bits and narrow ones fewer, ``num_bits`` on average.

    Minimises the sum of ``width^2 / 4^bits`` where the number of codes is given: the codes of a
    channel in proportion to ``width^(2/3)``, so ``bits = 2/3 log2(width) + constant``, cut to 2 to
    8. The constant is set so that the average is kept, and the remainders of rounding go to the
    largest fractions.

    Args:
        width: (C,) spread of each channel, zero or more.
        num_bits: Average, 2 to 8.

    Returns:
        (C,) int64, its mean exactly ``num_bits``.

    Source: section 4 (bit allocation). Differs from source: the authors approach the average in
        ten steps and may miss it.
    """
    width = width.double()
    if not bool((width > 0).any()):
        return torch.full_like(width, num_bits, dtype=torch.int64)
    floor = width[width > 0].min() * 2.0 ** -12  # dead channels: the fewest bits
    wanted = 2 / 3 * width.clamp(min=floor).log2()
    low, high = MIN_BITS - float(wanted.max()), MAX_BITS - float(wanted.min())
    for _ in range(60):
        constant = (low + high) / 2
        if float((wanted + constant).clamp(MIN_BITS, MAX_BITS).mean()) > num_bits:
            high = constant
        else:
            low = constant
    real = (wanted + low).clamp(MIN_BITS, MAX_BITS)
    bits = real.floor().long()
    missing = num_bits * width.numel() - int(bits.sum())
    order = torch.where(bits < MAX_BITS, real - bits, -1.0).argsort(descending=True, stable=True)
    bits[order[:missing]] += 1
    return bits


def correct_weights(weight: Tensor, codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Restores mean and norm that rounding took from each channel's weights.

    Args:
        weight: (..., N) float weights.
        codes: (..., N) their codes.
        scale: (...) real units a code step.

    Returns:
        (...) new scale and (...) offset: ``scale * codes + offset`` has the mean of ``weight``, and
        its deviations from the mean have their norm. A channel whose codes are all alike keeps
        its scale.

    Source: section 5 (bias correction). Differs from source: as printed the ratio of the norms
        multiplies the corrected mean too, which would miss it.
    """
    rounded = codes.to(weight) * scale.unsqueeze(-1)
    mean, rounded_mean = weight.mean(-1, keepdim=True), rounded.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(weight - mean, dim=-1)
    rounded_norm = torch.linalg.vector_norm(rounded - rounded_mean, dim=-1)
    usable = (norm > 0) & (rounded_norm > 0)
    ratio = torch.where(usable, norm / torch.where(usable, rounded_norm, 1.0), 1.0)
    return scale * ratio, (mean - rounded_mean * ratio.unsqueeze(-1)).squeeze(-1)
