"""Keeps biases inside 32 bits, in which integer kernels add them to the sums of products."""

import numpy as np
import torch
from torch import Tensor

from mmbitsplit.functional import rows_to_weight, weight_rows
from mmbitsplit.functional.quantizers.integer_bias import LARGEST_BIAS
from mmbitsplit.structures import LayerGeometry


def with_int32_bias(codes: Tensor, scale: np.ndarray, bias: np.ndarray, geometry: LayerGeometry,
                    ) -> tuple[Tensor, np.ndarray]:
    """Coarsens the codes of channels whose bias is more than 2^30 of their scale's steps.

    Integer kernels round the bias to whole steps of the weight scale. Where weights are nearly
    zero (a dead channel whose batch norm left a bias) it would overflow, silently. There the
    scale grows and the codes shrink; what is lost is less than float32 loses in adding the bias.

    Args:
        codes: int8, the weight's shape.
        scale: (out_channels,) float64, positive.
        bias: (out_channels,) float64.
        geometry: The layer.

    Returns:
        Codes and scale; the same objects where nothing is too large.
    """
    least = np.abs(bias) / LARGEST_BIAS
    large = least > scale
    if not large.any():
        return codes, scale
    rows = weight_rows(codes, geometry)  # (G, M, N)
    grown = np.where(large, least, scale)
    ratio = torch.from_numpy(scale / grown).view(rows.shape[0], rows.shape[1], 1)
    coarse = (rows.double() * ratio).round().to(torch.int8)
    return rows_to_weight(coarse, geometry), grown
