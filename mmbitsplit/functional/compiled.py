"""Inner loops compiled with Numba, parallel over output channels; imported when first needed.

Each has a plain torch counterpart (``descent``, ``error_feedback``) that gives the same codes.
"""

import numba
import numpy as np
import torch
from torch import Tensor


@numba.njit(parallel=True, cache=True, error_model='numpy')
def descent_block(values, residual, gram, step, low, high):  # pragma: no cover (compiled)
    """Visits the columns of a block one after another.

    Args:
        values, residual: (G, M, B), changed in place.
        gram: (G, B, B).
    """
    groups, rows, columns = values.shape
    for row in numba.prange(groups * rows):
        g, m = row // rows, row % rows
        for k in range(columns):
            curvature = gram[g, k, k]
            if curvature <= 0.0:
                continue
            old = values[g, m, k]
            new = np.rint(old + residual[g, m, k] / (step * curvature))
            new = min(max(new, low), high)
            if new != old:
                values[g, m, k] = new
                change = (new - old) * step
                for j in range(k, columns):
                    residual[g, m, j] -= change * gram[g, k, j]


@numba.njit(parallel=True, cache=True, error_model='numpy')
def feedback_block(block, errors, codes, scale, factor, low, high):  # pragma: no cover (compiled)
    """Rounds the columns of a block one after another, errors going to the later ones.

    Args:
        block: (G, M, B) what is left to round, changed in place.
        errors, codes: (G, M, B), written.
        scale: (G, M).
        factor: (G, B, B) upper triangular.
    """
    groups, rows, columns = block.shape
    for row in numba.prange(groups * rows):
        g, m = row // rows, row % rows
        for k in range(columns):
            value = block[g, m, k]
            code = min(max(np.rint(value / scale[g, m]), low), high)
            error = (value - code * scale[g, m]) / factor[g, k, k]
            codes[g, m, k] = code
            errors[g, m, k] = error
            for j in range(k + 1, columns):
                block[g, m, j] -= error * factor[g, k, j]


def run_compiled(loop, *arguments) -> None:
    """Calls a compiled loop on contiguous CPU tensors, with as many threads as torch has.

    More threads would fight with torch's own for the cores; and when Numba starts its OpenMP
    threads it also sets the number that torch uses, which is put back here.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    loop(*(value.numpy() if isinstance(value, Tensor) else value for value in arguments))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
