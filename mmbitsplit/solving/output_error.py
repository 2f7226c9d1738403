"""How far a layer's output is from the float layer's, over the positions of all processes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmbitsplit.functional import bias_correction
from mmbitsplit.methods import Method
from mmbitsplit.passes.team import Team
from mmbitsplit.structures import LayerMeans

# Squared; a spread below this part of the outputs' squares is what float32 leaves of a constant.
ROUND_OFF = 1e-10


@dataclass(frozen=True)
class Judgement:
    """What came of a solution.

    Args:
        error: Squared output error relative to the spread of the float outputs, see
            ``output_scale``.
        bias: (G, M) bias correction, ``None`` without.
    """

    error: float
    bias: Tensor | None


def output_error(weight: Tensor, means: LayerMeans, inputs: Tensor, y: Tensor, method: Method,
                 team: Team) -> Judgement:
    """Judges a quantized weight by the outputs it gives.

    Args:
        weight: (G, M, N) what the layer multiplies by.
        means: Of the positions they were fitted to.
        inputs: (G, N, K) what enters the product at the positions to judge on.
        y: (G, M, K) float outputs there.
        method: Whether the bias is corrected.
        team: Who holds the other positions.
    """
    bias = bias_correction(means, weight) if method.bias_correction else None
    error = torch.baddbmm(y, weight.to(y), inputs, alpha=-1)
    if bias is not None:
        error -= bias.to(error).unsqueeze(-1)
    sums = error_sums(y, error)
    team.add_(sums)
    return Judgement(relative_error(sums), bias)


def error_sums(y: Tensor, error: Tensor) -> Tensor:
    """What adds up over positions.

    Args:
        y: (G, M, K) float outputs.
        error: (G, M, K) differences from them.

    Returns:
        (G * M + 3,) float64: outputs by channel, their squares, those of the differences, K.
    """
    return torch.cat([y.sum(-1, dtype=torch.float64).flatten(),
                      y.double().square().sum().view(1), error.double().square().sum().view(1),
                      torch.tensor([float(y.shape[-1])], dtype=torch.float64, device=y.device)])


def relative_error(sums: Tensor) -> float:
    """Squared error relative to ``output_scale``, from ``error_sums`` of all positions."""
    y_sum, (y_sq, error_sq, count) = sums[:-3], sums[-3:]
    return float(error_sq / output_scale(y_sq - y_sum.square().sum() / count, y_sq))


def output_scale(spread: Tensor, energy: Tensor) -> Tensor:
    """Returns what squared output errors are divided by.

    Args:
        spread: () squares of the outputs about their channel's mean, summed.
        energy: () squares of the outputs, summed.

    Returns:
        The spread; the energy where the spread is round-off, as of a layer whose input is the
        same at every position; 1 where all outputs are zero.
    """
    scale = torch.where(spread > ROUND_OFF * energy, spread, energy)
    return torch.where(scale > 0, scale, 1.0)
