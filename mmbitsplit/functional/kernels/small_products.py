"""Products of a few rows with a weight of bytes: rounding, sums and scales in one compiled call.

Where a product takes a few microseconds, the calls that it is made of elsewhere (rounding, and
oneDNN, which looks its kernel up each time) take ten times as long.
"""

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmbitsplit.functional.kernels.numba_loops import OPTIONS


def _rows_product(x, sides, shift, codes, scale, bias, out):  # pragma: no cover
    """x (R, C), sides (3, 1 or C) scale and limits, shift (1 or C,), codes (O, C), out (R, O);
    ``bias`` may be empty. Returns how many values are not a number."""
    rows, channels = x.shape
    several = 1 if shift.shape[0] > 1 else 0
    bytes_ = np.empty(channels, np.int16)
    missing = np.int32(0)
    for row in range(rows):
        for c in range(channels):
            s = c * several
            code = np.rint(x[row, c] / sides[0, s])
            missing += code != code
            code = min(max(code, sides[1, s]), sides[2, s])
            bytes_[c] = np.int32(code) + shift[s]
        for o in range(codes.shape[0]):
            weight, total = codes[o], np.int32(0)
            for c in range(channels):
                total += np.int32(bytes_[c]) * np.int32(weight[c])
            out[row, o] = total * scale[o] + (bias[o] if bias.shape[0] else np.float32(0))
    return missing


_few_rows = numba.njit(**OPTIONS)(_rows_product)


def small_product(x: Tensor, sides: NDArray[np.float32], shift: NDArray[np.int32],
                  codes: NDArray[np.int8], scale: NDArray[np.float32],
                  bias: NDArray[np.float32]) -> Tensor | None:
    """Returns ``scale * sum(bytes(x) * codes) + bias``; sums are whole numbers, none saturates.

    Args:
        x: (R, C) float32 CPU tensor, contiguous.
        sides: (3, 1) or (3, C) float32: scales, lowest and highest code less zero point.
        shift: (1,) or (C,) int32 that brings codes to 0 to 255.
        codes: (O, C) int8.
        scale: (O,) float32.
        bias: (O,) float32, or empty.

    Returns:
        (R, O) float32; ``None`` where a value is not a number.
    """
    out = torch.empty((x.shape[0], codes.shape[0]))
    missing = _few_rows(x.detach().numpy(), sides, shift, codes, scale, bias, out.numpy())
    return None if missing else out
