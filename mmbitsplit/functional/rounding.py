"""Plain rounding of weights: the scale search by min/max and by mean squared error."""

import torch
from torch import Tensor

from mmbitsplit.functional.affine import code_range
from mmbitsplit.functional.round_trip import round_trip_errors


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
    lowest = 0.2 if num_bits < 4 else 0.4
    factors = torch.cat([torch.ones(1), torch.linspace(lowest, 1.0, steps)]).to(weight)
    candidates = factors.unsqueeze(1) * scale.flatten()  # (F, rows)
    bound = torch.full_like(candidates, largest)
    errors = round_trip_errors(weight.reshape(-1, weight.shape[-1]), candidates, -bound, bound)
    best = candidates.gather(0, errors.argmin(0, keepdim=True)).view(scale.shape)
    codes = round_weight(weight, best, num_bits)
    energy = codes.square().sum(-1)
    return torch.where(energy > 0, (codes * weight).sum(-1) / energy.clamp(min=1), best)


def round_weight(weight: Tensor, scale: Tensor, num_bits: int) -> Tensor:
    """Rounds to the nearest code in the narrow range; codes keep the dtype of ``weight``."""
    smallest, largest = code_range(num_bits, signed=True, narrow_range=True)
    return torch.div(weight, scale.unsqueeze(-1)).round_().clamp_(smallest, largest)
