"""TensorRT's entropy calibration: the clipping threshold that keeps most of a distribution.

Source: Migacz, 8-bit inference with TensorRT, GTC 2017. Differs from the slides, as NVIDIA's
pytorch-quantization does: the count of the bin at zero is that of the next one, since after a ReLU
half of all values lie in it; and at every width at least 128 of the 2048 bins are kept.
"""

import torch
from torch import Tensor

NUM_BINS = 2048
# At least this part of the range is kept. Inputs that come of few codes leave most bins near zero
# empty; with fewer of them, all that lies beyond falls into the last of some empty bins, which a
# few levels repeat without any divergence (CIFAR ResNet-20 W3A3 falls from 59 % to 10 %).
LEAST_PART = 128 / 2048


def entropy_threshold(values: Tensor, num_levels: int, num_bins: int = NUM_BINS) -> Tensor:
    """Minimises the divergence of the rounded from the clipped distribution, each row.

    Args:
        values: (C, S); their magnitudes are looked at.
        num_levels: Codes from zero up that share the range.
        num_bins: Bins of the histogram from 0 to the largest magnitude.

    Returns:
        (C,) thresholds in the dtype of ``values``, zero for a row of zeros.
    """
    values = values.abs()
    top = values.amax(1)
    thresholds = torch.zeros_like(top)
    for row in top.nonzero().flatten().tolist():
        counts = torch.histc(values[row].double(), num_bins, 0.0, float(top[row]))
        counts[0] = counts[1]  # zeros are exact at any threshold and would outweigh the rest
        bins = best_number_of_bins(counts, num_levels)
        thresholds[row] = top[row] * min(1.0, (bins + 0.5) / num_bins)
    return thresholds


def best_number_of_bins(counts: Tensor, num_levels: int) -> int:
    """Returns how many bins of a histogram to keep: the least divergence of all numbers.

    Args:
        counts: (B,) of a histogram that starts at zero.
        num_levels: Codes that share them; never fewer bins than codes.
    """
    least = max(num_levels, round(LEAST_PART * len(counts)))
    kept = torch.arange(min(least, len(counts)), len(counts) + 1)
    divergence = divergences(counts, kept, num_levels)
    # The slides keep the first of equal ones.
    return int(kept[divergence.argmin()])


def divergences(counts: Tensor, kept: Tensor, num_levels: int) -> Tensor:
    """Divergence of the rounded histogram from the clipped one, for several clippings.

    With i bins kept, P is those bins with everything beyond added to the last of them; Q is those
    bins in ``num_levels`` parts, each part's sum spread evenly over its bins that P has anything
    in; both are scaled to sum to one. Only sums over parts enter, so all i are computed at once.

    Args:
        counts: (B,).
        kept: (K,) int64 numbers of bins.
        num_levels: L.

    Returns:
        (K,) float64; infinite where a bin of P has nothing in Q.
    """
    counts = counts.double()
    kept_counts = _sums(counts)  # (B + 1,) of the first bins
    filled = _sums((counts > 0).double())
    entropy = _sums(torch.xlogy(counts, counts))
    total, last = kept_counts[-1], counts[kept - 1]
    beyond = total - kept_counts[kept]  # (K,)
    # (K, L + 1) where the parts begin, as even as whole bins allow; rounded up.
    parts = torch.arange(num_levels + 1, device=counts.device)
    edges = (parts * kept.unsqueeze(1) + num_levels - 1) // num_levels
    mass = kept_counts[edges].diff(dim=1)  # of P and of Q, all but what lies beyond
    bins = filled[edges].diff(dim=1)
    bins[:, -1] += (last == 0) & (beyond > 0)  # what lies beyond fills the last bin
    p = mass.clone()
    p[:, -1] += beyond
    # sum P log P - sum P log Q, before scaling; Q is even within a part.
    own = entropy[kept] - torch.xlogy(last, last) + torch.xlogy(last + beyond, last + beyond)
    cross = torch.where(p > 0, p * (mass / bins.clamp(min=1)).log(), 0.0).sum(1)
    divergence = (own - cross) / total - total.log() + kept_counts[kept].log()
    # NaN: nothing is left in the bins kept.
    return divergence.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _sums(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])
