"""Plain rounding of weights: the scale search by min/max and by mean squared error."""

import torch
from torch import Tensor

from mmbitsplit.functional.affine import code_range


def weight_scale(weight: Tensor, num_bits: int, search: str = 'mse', steps: int = 60) -> Tensor:
    """Finds one scale an output channel for symmetric rounding.

    Minimises ``||weight - scale * codes||^2`` over the scale for ``search='mse'``: a grid of
    shrunken maxima, then the closed-form scale for the codes found, which cannot be worse.

    Args:
        weight: (..., N) real weights, one output channel a row.
        num_bits: 2 to 8.
        search: ``'mse'`` or ``'minmax'``.
        steps: Grid points of the search.

    Returns:
        (...) positive scales, real units a code step; 1 for an all-zero row.
    """
    _, largest = code_range(num_bits, signed=True, narrow_range=True)
    top = weight.abs().amax(-1)
    scale = torch.where(top > 0, top / largest, 1.0)
    if search == 'minmax':
        return scale
    best, best_error = scale, _rounding_error(weight, scale, largest)
    lowest = 0.2 if num_bits < 4 else 0.4
    for factor in torch.linspace(lowest, 1.0, steps, dtype=torch.float64).tolist():
        candidate = scale * factor
        error = _rounding_error(weight, candidate, largest)
        better = error < best_error
        best = torch.where(better, candidate, best)
        best_error = torch.where(better, error, best_error)
    codes = round_weight(weight, best, num_bits)
    energy = codes.square().sum(-1)
    return torch.where(energy > 0, (codes * weight).sum(-1) / energy.clamp(min=1), best)


def round_weight(weight: Tensor, scale: Tensor, num_bits: int) -> Tensor:
    """Rounds to the nearest code in the narrow range; codes keep the dtype of ``weight``."""
    smallest, largest = code_range(num_bits, signed=True, narrow_range=True)
    return torch.div(weight, scale.unsqueeze(-1)).round_().clamp_(smallest, largest)


def _rounding_error(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    codes = torch.div(weight, scale.unsqueeze(-1)).round_().clamp_(-largest, largest)
    return codes.mul_(scale.unsqueeze(-1)).sub_(weight).square_().sum(-1)
