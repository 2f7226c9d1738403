"""Mean and variance of a layer's outputs, and the scale and shift that give them others."""

import torch
from torch import Tensor

from mmbitsplit.structures import FoldedNorm, LayerGeometry

# A channel that hardly moves on the images at hand may on others: it is scaled by no more than
# this, where a norm would by up to gamma / sqrt(eps).
MOST_GROWTH = 8.0


def output_moments(output: Tensor, geometry: LayerGeometry) -> Tensor:
    """Sums over the positions of a call.

    Args:
        output: What the layer gave.
        geometry: Of the layer.

    Returns:
        (3, out_channels) float64: how many there are, their sum, the sum of their squares.
    """
    dim = -1 if geometry.kind == 'linear' else -3
    rows = output.detach().movedim(dim, -1).flatten(0, -2).double()
    return torch.stack([torch.full_like(rows[:0].sum(0), len(rows)), rows.sum(0),
                        rows.square().sum(0)])


def mean_and_variance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """(out_channels,) each, of sums (3, out_channels); the variance of what is there, biased."""
    count = moments[0].clamp(min=1)
    mean = moments[1] / count
    return mean, (moments[2] / count - mean.square()).clamp(min=0)


def renormalization(mean: Tensor, variance: Tensor, norm: FoldedNorm) -> tuple[Tensor, Tensor]:
    """What a norm that is rebuilt behind a layer does to its outputs: ``factor * y + shift``.

    The rebuilt norm has the weight ``sqrt(gamma^2 + eps)`` and the bias ``beta``, so that it is
    the identity where outputs have the folded norm's mean ``beta`` and variance ``gamma^2``.

    Args:
        mean, variance: (out_channels,) of the outputs as they are.
        norm: The folded norm.

    Returns:
        (out_channels,) each, float64; factors are positive.

    Source: Hubara et al., ICML 2021, para-normalization.
    """
    gamma = (norm.gamma.square() + norm.eps).sqrt()
    factor = (gamma / (variance + norm.eps).sqrt()).clamp(max=MOST_GROWTH)
    return factor, norm.beta - factor * mean
