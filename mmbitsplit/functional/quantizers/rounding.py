"""Plain rounding of weights: the scale search by min/max, squared error or another norm."""

import torch
from torch import Tensor

from mmbitsplit.functional.kernels.round_trip import round_trip_errors
from mmbitsplit.functional.quantizers.affine import code_range

COARSE, FINE = 16, 9  # grid points of the search, the second time around the best of the first


def weight_scale(weight: Tensor, num_bits: int, search: str = 'mse', norm: float = 3.0) -> Tensor:
    """Finds one scale an output channel for symmetric rounding.

    Minimises ``||weight - scale * codes||^2`` over the scale for ``search='mse'``: a grid of
    shrunken maxima, a finer one around the best, then the closed-form scale for the codes found,
    which cannot be worse. With 2 bits the scale is the best there is: rows with a few weights that
    are far larger than the others would have theirs below the grid.

    Args:
        weight: (..., N) real weights, one output channel a row.
        num_bits: 2 to 8.
        search: ``'mse'``, ``'minmax'``, or ``'lp'`` for the least p-norm of the errors (the grid
            alone; there is no closed form).
        norm: p of ``search='lp'``.

    Returns:
        (...) positive scales, real units a code step; 1 for an all-zero row.
    """
    _, largest = code_range(num_bits, signed=True, narrow_range=True)
    top = weight.abs().amax(-1)
    scale = torch.where(top > 0, top / largest, 1.0)
    if search == 'minmax':
        return scale
    if search == 'mse' and num_bits == 2:
        best = _ternary_scale(weight)
    else:
        best = _search(weight.reshape(-1, weight.shape[-1]), scale.flatten(), num_bits,
                       norm if search == 'lp' else 2.0).view(scale.shape)
    if search == 'lp':
        return best
    codes = round_weight(weight, best, num_bits)
    energy = codes.square().sum(-1)
    return torch.where(energy > 0, (codes * weight).sum(-1) / energy.clamp(min=1), best)


def _search(rows: Tensor, top: Tensor, num_bits: int, norm: float) -> Tensor:
    """(rows,) scales of least error between a part of ``top`` and all of it."""
    _, largest = code_range(num_bits, signed=True, narrow_range=True)
    lowest = 0.2 if num_bits < 4 else 0.4
    step = (1.0 - lowest) / (COARSE - 1)
    best = torch.ones_like(top)
    for offsets in (torch.linspace(0.0, lowest - 1.0, COARSE), torch.linspace(step, -step, FINE)):
        factors = (best + offsets.to(rows).unsqueeze(1)).clamp(max=1.0)  # (F, rows)
        candidates = factors * top
        bound = torch.full_like(candidates, largest)
        errors = round_trip_errors(rows, candidates, -bound, bound, norm)
        best = factors.gather(0, errors.argmin(0, keepdim=True))[0]
    return best * top


def _ternary_scale(weight: Tensor) -> Tensor:
    """(...) scales of least squared error of codes -1, 0, 1; 1 for an all-zero row.

    With the k largest magnitudes coded, the best scale is their mean, and it saves ``sum^2 / k`` of
    the squared error.
    """
    sums = weight.abs().sort(-1, descending=True).values.cumsum(-1)  # (..., N), of the k largest
    counts = torch.arange(1, weight.shape[-1] + 1, device=weight.device).to(sums)
    chosen = (sums.square() / counts).argmax(-1, keepdim=True)
    scale = (sums / counts).gather(-1, chosen).squeeze(-1)
    return torch.where(scale > 0, scale, 1.0)


def round_weight(weight: Tensor, scale: Tensor, num_bits: int) -> Tensor:
    """Rounds to the nearest code in the narrow range; codes keep the dtype of ``weight``."""
    smallest, largest = code_range(num_bits, signed=True, narrow_range=True)
    return torch.div(weight, scale.unsqueeze(-1)).round_().clamp_(smallest, largest)
