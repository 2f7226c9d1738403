"""The sums a solver sees, and what they say about a solution."""

import operator
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from mmbitsplit.functional.kernels.exact_sums import (
    MOST_POSITIONS,
    STRIP,
    Bytes,
    SumGrid,
    grid_products,
    integer_cross,
    integer_gram,
    integer_products,
    on_grid,
)
from mmbitsplit.structures import LayerMeans, LayerStatistics

# Above this many inputs the sums stay in float32: twice as fast to factor and half as large (one
# float64 gram of RetinaNet's P6 layer, N = 18432, takes 2.7 GB). Their ridge keeps them
# well-conditioned.
MOST_INPUTS_IN_DOUBLE = 1024
LEAST_RIDGE = 0.03
LEAST_INPUTS_FOR_SYRK = 512  # below it torch and NumPy are alike


def layer_statistics(x: Tensor, y: Tensor, *, lowest: int | Tensor | None = None,
                     grid: SumGrid | None = None, dtype: torch.dtype | None = None,
                     ) -> LayerStatistics:
    """Sums products over positions.

    The products are taken in the dtype of the inputs, the results kept in float64, which is
    what the solvers' differences need; large grams stay in the dtype of the inputs.

    Args:
        x: (G, N, K), what enters the product at K positions.
        y: (G, M, K), float outputs without bias at the same positions.
        lowest: Given when x holds integers from here to 255 more, one for all or (G, N, 1):
            products are then taken in integers, exactly and with VNNI several times faster.
        grid: Given to have sums without a rounding error, on a device that has float64.
        dtype: Of the results, instead of the usual one.
    """
    if dtype is None:
        dtype = working_dtype(x)
    if grid is not None:
        return _exact_statistics(x, y, lowest, grid, dtype)
    return LayerStatistics(
        x_sum=x.sum(-1, dtype=dtype), y_sum=y.sum(-1, dtype=dtype), count=x.shape[-1],
        gram=inputs_gram(x, lowest, dtype), cross=(y @ x.mT).to(dtype),
        y_sq=torch.linalg.vector_norm(y, dim=-1, dtype=torch.float64).square_().to(dtype))


def working_dtype(x: Tensor) -> torch.dtype:
    """Dtype in which a solver gets the sums of inputs (G, N, K)."""
    return torch.float64 if x.shape[1] <= MOST_INPUTS_IN_DOUBLE else x.dtype


def _exact_statistics(x: Tensor, y: Tensor, lowest: int | Tensor | None, grid: SumGrid,
                      dtype: torch.dtype) -> LayerStatistics:
    """``layer_statistics`` of outputs (and inputs that are no integers) on a grid."""
    part = MOST_POSITIONS - 1
    if x.shape[2] > part:
        return reduce(operator.add, (
            _exact_statistics(*piece, lowest, grid, torch.float64)
            for piece in zip(x.split(part, -1), y.split(part, -1)))).to(dtype)
    if lowest is not None and integer_products(x):
        integers = Bytes.of(x, lowest)
        x_sum, gram = integers.value_sums, integer_gram(integers, dtype)
        cross, y_sum, y_sq = integer_cross(integers, y, grid.y)
    else:
        inputs = x
        if grid.x is not None:  # a multiple of the step has no more digits than float32
            inputs = torch.cat([on_grid(part, grid.x).to(x.dtype) for part in x.split(STRIP, 1)], 1)
        outputs = on_grid(y, grid.y)
        gram, cross = grid_products(inputs, outputs, dtype)
        x_sum = inputs.sum(-1, dtype=torch.float64)
        y_sum, y_sq = outputs.sum(-1), outputs.square().sum(-1)
    return LayerStatistics(x_sum=x_sum, y_sum=y_sum, count=x.shape[-1], gram=gram, cross=cross,
                           y_sq=y_sq).to(dtype)


def inputs_gram(x: Tensor, lowest: int | Tensor | None, dtype: torch.dtype) -> Tensor:
    """Returns ``x @ x^T`` (G, N, N) in a dtype; see ``layer_statistics`` for ``lowest``."""
    if lowest is not None and integer_products(x):
        return integer_gram(Bytes.of(x, lowest), dtype)
    if x.device.type != 'cpu' or x.shape[0] > 1 or x.shape[1] < LEAST_INPUTS_FOR_SYRK:
        return (x @ x.mT).to(dtype)
    # NumPy knows a product with its own transpose for symmetric and does half of it; torch
    # does not (1.8 times the time at N = 2304).
    rows = x[0].numpy()
    return torch.from_numpy(rows @ rows.T).unsqueeze(0).to(dtype)


def center(statistics: LayerStatistics) -> LayerStatistics:
    """Takes the means out: what remains is the objective with the best bias for every solution.

    For any weights w, min over bias of sum (y - w.x - bias)^2 is the objective of the centred
    sums, so solving on these fits weights and bias together.
    """
    gram, cross, y_sq, x_sum, y_sum, count = (
        statistics.gram, statistics.cross, statistics.y_sq, statistics.x_sum, statistics.y_sum,
        statistics.count)
    return replace(
        statistics,
        gram=torch.baddbmm(gram, x_sum.unsqueeze(2), x_sum.unsqueeze(1), alpha=-1 / count),
        cross=cross - y_sum.unsqueeze(2) * x_sum.unsqueeze(1) / count,
        y_sq=y_sq - y_sum.square() / count)


def cancels(statistics: LayerStatistics) -> bool:
    """Whether taking the means out of sums in float32 leaves less than their rounding errors.

    Inputs that hardly vary about a large mean have a gram of which nearly everything goes with
    the means. The errors, as a symmetric random matrix, have a spectral norm of about
    ``2 sqrt(N)`` of one of them; the least ridge of ``default_ridge`` has to be larger.
    """
    if statistics.gram.dtype != torch.float32 or not statistics.count:
        return False
    raw = statistics.gram.diagonal(dim1=1, dim2=2).double()
    left = raw - statistics.x_sum.double().square() / statistics.count
    noise = 2 * raw.shape[1] ** 0.5 * torch.finfo(torch.float32).eps / 2 * raw.amax(1)
    return bool((noise > LEAST_RIDGE * left.mean(1)).any())


def default_ridge(num_inputs: int, count: int) -> float:
    """Returns the ridge for N inputs and K positions, a multiple of the mean gram diagonal.

    The fewer positions an input has, the more of the fit is noise; 1.5 N / K, from 0.03 to 0.5,
    was near the best held-out error on the demo detectors for N / K from 0.03 to 1.
    """
    return min(0.5, max(LEAST_RIDGE, 1.5 * num_inputs / count))


def add_ridge(statistics: LayerStatistics, weight: Tensor, ridge: float | None = None,
              ) -> LayerStatistics:
    """Pulls solutions toward the float weight where the sampled positions say little.

    Adds ``strength * ||a q - weight||^2`` to the objective, with ``strength`` a multiple of the
    mean gram diagonal; the sums of an all-zero input get a unit pull.

    Args:
        statistics: Sums, maybe rank-deficient.
        weight: (G, M, N) float weights on the scale of the inputs of the sums.
        ridge: Multiple of the mean diagonal; ``default_ridge`` when not given.
    """
    gram = statistics.gram.clone()
    if ridge is None:
        ridge = default_ridge(gram.shape[-1], statistics.count)
    mean_diagonal = gram.diagonal(dim1=1, dim2=2).mean(1)  # (G,)
    strength = ridge * torch.where(mean_diagonal > 0, mean_diagonal, 1.0)
    weight = weight.to(gram)
    gram.diagonal(dim1=1, dim2=2).add_(strength.unsqueeze(1))
    return replace(statistics, gram=gram,
                   cross=statistics.cross + strength.view(-1, 1, 1) * weight,
                   y_sq=statistics.y_sq + strength.view(-1, 1) * weight.square().sum(-1))


def quadratic_objective(gram: Tensor, cross: Tensor, y_sq: Tensor, weight: Tensor) -> Tensor:
    """Returns ``y_sq - 2 w.cross + w^T gram w`` (paper, Eq. 2), shape (G, M).

    Args:
        gram: (G, N, N).
        cross: (G, M, N).
        y_sq: (G, M).
        weight: (G, M, N) real weights, scale times codes.
    """
    product = torch.baddbmm(cross, weight, gram, beta=-2)  # w gram - 2 cross
    return y_sq + (product * weight).sum(-1)


def bias_correction(means: LayerMeans, weight: Tensor) -> Tensor:
    """Returns what to add to the bias so that mean outputs agree: mean y - w . mean x, (G, M)."""
    mean_x, mean_y = means.x_mean.double(), means.y_mean.double()
    return mean_y - torch.einsum('gmn,gn->gm', weight.to(mean_x), mean_x)
