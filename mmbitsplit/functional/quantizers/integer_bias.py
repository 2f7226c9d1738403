"""Biases in whole steps of the integer product, as integer kernels add them."""

import torch
from torch import Tensor

# Sums of products and bias share 32 bits.
LARGEST_BIAS = 2 ** 30


def whole_steps(bias: Tensor, scale: Tensor) -> Tensor:
    """Rounds a bias to whole steps of the weight scale; then integer kernels add it exactly.

    One product of codes is a whole number of steps, and a layer sums hundreds of them: what is lost
    is far below what rounding the weights costs.

    Args:
        bias: (out_channels,) real.
        scale: (out_channels,) positive, real units a step of the product.

    Returns:
        (out_channels,) in the dtype of ``bias``; as it was where it is more than 2^30 steps,
        which integers would not hold.
    """
    steps = bias.double() / scale.double()
    rounded = (steps.round() * scale.double()).to(bias.dtype)
    return torch.where(steps.abs() <= LARGEST_BIAS, rounded, bias)
