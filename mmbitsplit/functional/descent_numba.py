"""The compiled inner loop of ``functional.descent``; imported when first needed."""

import numba
import numpy as np


@numba.njit(parallel=True, cache=True, error_model='numpy')
def block_loop(values, residual, gram, step, low, high):  # pragma: no cover (compiled)
    """Visits the columns of a block one after another, output channels in parallel.

    Args:
        values, residual: (G, M, B) float64, changed in place.
        gram: (G, B, B) float64.
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
