"""Blocked coordinate descent on a lattice: the inner loop of bit optimization and of polish.

One element moves to ``clip(round(value + residual_k / (step * gram_kk)))`` with all others
fixed, which is the exact minimiser of the objective over that element (paper, Eq. 8, written
for values; a ternary plane is the lattice -1, 0, 1 with a step of 2^m, whole codes are the
lattice of all codes with step 1). ``residual = cross / scale - codes @ gram``.
"""

import torch
from torch import Tensor

BLOCK = 64


def sweep_(values: Tensor, product: Tensor, target: Tensor, gram: Tensor, *, step: float,
           low: float, high: float) -> int:
    """Visits every element once, in place; the objective never rises.

    Residuals of a block of columns come from ``product``, the sequential part stays inside the
    block, and what moved reaches the other columns by one matrix product a block.

    Args:
        values: (G, M, N) lattice values, changed in place.
        product: (G, M, N) ``codes @ gram``, kept up to date in place.
        target: (G, M, N) ``cross / scale``.
        gram: (G, N, N).
        step: What one unit of a value adds to the code.
        low, high: Range of the values.

    Returns:
        Number of elements that moved.
    """
    num_columns = values.shape[-1]
    moved = 0
    for start in range(0, num_columns, BLOCK):
        block = slice(start, min(start + BLOCK, num_columns))
        residual = target[..., block] - product[..., block]
        before = values[..., block]
        after = before.clone(memory_format=torch.contiguous_format)  # never a view of before
        block_loop(after, residual.contiguous(), gram[:, block, block].contiguous(), step, low,
                   high)
        change = after - before
        count = int(torch.count_nonzero(change))
        if count:
            values[..., block] = after
            product.baddbmm_(change, gram[:, block, :], alpha=step)
            moved += count
    return moved


def block_loop(values: Tensor, residual: Tensor, gram: Tensor, step: float, low: float,
               high: float) -> None:
    """The sequential part of a sweep: compiled on the CPU, plain torch elsewhere."""
    if values.device.type == 'cpu':
        from mmbitsplit.functional.compiled import descent_block, run_compiled
        run_compiled(descent_block, values, residual, gram, float(step), float(low), float(high))
    else:
        block_loop_torch(values, residual, gram, step, low, high)


def block_loop_torch(values: Tensor, residual: Tensor, gram: Tensor, step: float, low: float,
                     high: float) -> None:
    """The sequential part in plain torch: one column after another, all rows at once.

    Args:
        values, residual: (G, M, B), changed in place.
        gram: (G, B, B).
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)  # (G, B)
    for k in range(values.shape[-1]):
        curvature = diagonal[:, k].view(-1, 1)
        wanted = values[..., k] + residual[..., k] / (step * curvature)
        new = torch.where(curvature > 0, wanted.round().clamp(low, high), values[..., k])
        change = (new - values[..., k]) * step  # (G, M)
        values[..., k] = new
        residual.baddbmm_(change.unsqueeze(2), gram[:, k:k + 1, :], alpha=-1)
