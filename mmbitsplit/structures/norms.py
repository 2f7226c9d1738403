"""What is known of a batch norm that was folded into the layer before it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FoldedNorm:
    """Where a folded norm puts the outputs of its layer: their mean is ``beta``, their standard
    deviation the size of ``gamma``.

    Args:
        gamma, beta: (out_channels,) float64.
        eps: That it adds to variances.
    """

    gamma: Tensor
    beta: Tensor
    eps: float
