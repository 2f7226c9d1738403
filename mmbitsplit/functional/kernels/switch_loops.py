"""From integer codes to the weight of a width in one pass over memory, compiled with Numba.

Compiled or read from the cache when imported, not when first called: switching has no time for it.
"""

import numba
import numpy as np
from torch import Tensor

from mmbitsplit.functional.kernels.numba_loops import OPTIONS, run_loop

# Products and sums are rounded one by one, as torch's are: no contraction.
_EXACT = dict(OPTIONS, fastmath=False)
_SIGNATURE = ('void(int8[:,:,:,::1], int64, boolean, float32[::1], float32[::1], '
              'int8[:,:,:,::1], float32[:,:,:,::1])')


def _write_weight(codes, shift, planes, scale, offset, narrower, weight):  # pragma: no cover
    """Writes narrower codes (where there is a shift) and the weight, all (G, I, O, L).

    Args:
        codes: Of the widest width.
        shift: Bits that the width is narrower; small enough for int8.
        planes: Whether magnitudes are shifted, else two's complement.
        scale, offset: (G * O,).
    """
    groups, inputs, outputs, length = codes.shape
    for row in numba.prange(groups * inputs * outputs):
        g, i, o = row // (inputs * outputs), row // outputs % inputs, row % outputs
        step, less = scale[g * outputs + o], offset[g * outputs + o]
        whole, part, real = codes[g, i, o], narrower[g, i, o], weight[g, i, o]
        if shift == 0:
            for j in range(length):
                real[j] = np.float32(whole[j]) * step + less
        elif planes:
            for j in range(length):
                magnitude = abs(np.int32(whole[j])) >> shift
                code = np.int8(-magnitude if whole[j] < 0 else magnitude)
                part[j] = code
                real[j] = np.float32(code) * step + less
        else:
            for j in range(length):
                code = np.int8(whole[j] >> shift)
                part[j] = code
                real[j] = np.float32(code) * step + less


_serial_weight = numba.njit(_SIGNATURE, **_EXACT)(_write_weight)
_parallel_weight = numba.njit(_SIGNATURE, parallel=True, **_EXACT)(_write_weight)


def write_weight(weight: Tensor, codes: Tensor, shift: int, planes: bool, scale: Tensor,
                 offset: Tensor, narrower: Tensor) -> None:
    """See ``_write_weight``; contiguous CPU tensors."""
    arrays = [value.detach().numpy() for value in (codes, scale, offset, narrower, weight)]
    run_loop(_serial_weight, _parallel_weight, weight.numel(), arrays[0], shift, planes,
             *arrays[1:])
