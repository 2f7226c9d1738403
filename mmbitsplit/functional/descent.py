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
    block_loop = _block_loop(values.device.type)
    for start in range(0, num_columns, BLOCK):
        stop = min(start + BLOCK, num_columns)
        block = slice(start, stop)
        residual = (target[..., block] - product[..., block]).contiguous()
        gram_block = gram[:, block, block].contiguous()
        before = values[..., block].contiguous()
        after = before.clone()
        block_loop(after, residual, gram_block, step, low, high)
        change = after - before
        count = int(torch.count_nonzero(change))
        if count:
            values[..., block] = after
            product.baddbmm_(change, gram[:, block, :], alpha=step)
            moved += count
    return moved


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


def _block_loop_numba(values: Tensor, residual: Tensor, gram: Tensor, step: float, low: float,
                      high: float) -> None:
    import numba  # here, because compiling costs a second: only when needed

    from mmbitsplit.functional.descent_numba import block_loop
    # As many threads as torch was given; more would fight with torch's own.
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    block_loop(values.numpy(), residual.numpy(), gram.numpy(), float(step), float(low),
               float(high))


def _block_loop(device_type: str):
    """Compiled code where it runs, plain torch elsewhere; both give the same codes."""
    return _block_loop_numba if device_type == 'cpu' else block_loop_torch
