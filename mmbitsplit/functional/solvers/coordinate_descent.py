"""Coordinate descent on a lattice: the inner loop of bit optimization and of polish.

One element moves to ``clip(round(value + residual_k / (step * gram_kk)))`` with all others
fixed, which is the exact minimiser of the objective over that element (paper, Eq. 8, written
for values; a ternary plane is the lattice -1, 0, 1 with a step of 2^m, whole codes are the
lattice of all codes with step 1). ``residual = cross / scale - codes @ gram``.
"""

import importlib.util

import torch
from torch import Tensor

BLOCK = 64


def sweep_(values: Tensor, product: Tensor, target: Tensor, gram: Tensor, *, step: float,
           low: float, high: float, closed: Tensor | None = None) -> Tensor:
    """Visits every element once, in place; the objective never rises.

    Residuals of a block of columns come from ``product``, the sequential part stays inside the
    block, and what moved then reaches the other columns at once.

    Args:
        values: (G, M, N) lattice values, changed in place.
        product: (G, M, N) ``codes @ gram``, kept up to date in place.
        target: (G, M, N) ``cross / scale``.
        gram: (G, N, N).
        step: What one unit of a value adds to the code.
        low, high: Range of the values.
        closed: (G, M) bool, rows to leave alone.

    Returns:
        (G, M) int64, how many elements of each row moved.
    """
    if values.device.type == 'cpu':
        from mmbitsplit.functional.kernels.numba_loops import descent_sweep
        moved = torch.zeros(values.shape[:2], dtype=torch.int64)
        if closed is None:
            descent_sweep(values, product, target, gram, step, low, high, moved)
            return moved
        moved[closed] = -1  # closes a row
        descent_sweep(values, product, target, gram, step, low, high, moved)
        return moved.clamp_(min=0)
    if closed is None:
        closed = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
    return sweep_by_blocks_(values, product, target, gram, step=step, low=low, high=high,
                            closed=closed)


def sweep_by_blocks_(values: Tensor, product: Tensor, target: Tensor, gram: Tensor, *,
                     step: float, low: float, high: float, closed: Tensor) -> Tensor:
    """The same on any device: one matrix product a block carries what moved to the others."""
    num_columns = values.shape[-1]
    moved = torch.zeros_like(closed, dtype=torch.int64)
    for start in range(0, num_columns, BLOCK):
        block = slice(start, min(start + BLOCK, num_columns))
        residual = target[..., block] - product[..., block]
        before = values[..., block]
        after = before.clone(memory_format=torch.contiguous_format)  # never a view of before
        block_loop(after, residual.contiguous(), gram[:, block, block].contiguous(), step, low,
                   high)
        after = torch.where(closed.unsqueeze(-1), before, after)
        change = after - before
        moved += torch.count_nonzero(change, dim=-1)
        values[..., block] = after
        product.baddbmm_(change, gram[:, block, :], alpha=step)
    return moved


def block_loop(values: Tensor, residual: Tensor, gram: Tensor, step: float, low: float,
               high: float) -> None:
    """The sequential part of a block: a Triton kernel where there is one, else plain torch."""
    if has_triton(values):
        from mmbitsplit.functional.kernels.triton_loops import descent_block
        descent_block(values, residual, gram, float(step), float(low), float(high))
    else:
        block_loop_torch(values, residual, gram, step, low, high)


def has_triton(values: Tensor) -> bool:
    """Whether Triton kernels run on a tensor; CUDA builds of torch for Linux bring Triton."""
    return values.is_cuda and importlib.util.find_spec('triton') is not None


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
