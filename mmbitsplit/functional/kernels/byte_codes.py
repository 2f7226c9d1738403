"""Rounds activations to bytes in one pass over memory, for products of integers."""

import numba
import numpy as np
import torch
from torch import Tensor

from mmbitsplit.functional.kernels.numba_loops import OPTIONS, run_loop

# Values that one thread takes at a time.
PART = 1 << 14


def _bytes_of_flat(x, scale, low, high, shift, out, found):  # pragma: no cover
    """One scale for all: x and out (L,), found (parts,) counts what is not a number."""
    for part in numba.prange(found.shape[0]):
        missing = np.int32(0)
        # Views that begin at 0: else the loop is not turned into vectors.
        values, codes = x[part * PART:(part + 1) * PART], out[part * PART:(part + 1) * PART]
        for j in range(values.shape[0]):
            code = np.rint(values[j] / scale)
            missing += code != code
            code = min(max(code, low), high)
            codes[j] = np.uint8(np.int32(code) + shift)
        found[part] = missing


def _bytes_of_rows(x, scale, low, high, shift, out, found):  # pragma: no cover
    """Scales, limits and shifts (C,) along the last dimension: x and out (R, C), found (R,)."""
    for row in numba.prange(x.shape[0]):
        missing = np.int32(0)
        for j in range(x.shape[1]):
            code = np.rint(x[row, j] / scale[j])
            missing += code != code
            code = min(max(code, low[j]), high[j])
            out[row, j] = np.uint8(np.int32(code) + shift[j])
        found[row] = missing


_serial_flat = numba.njit(**OPTIONS)(_bytes_of_flat)
_parallel_flat = numba.njit(parallel=True, **OPTIONS)(_bytes_of_flat)
_serial_rows = numba.njit(**OPTIONS)(_bytes_of_rows)
_parallel_rows = numba.njit(parallel=True, **OPTIONS)(_bytes_of_rows)


def byte_codes(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, shift: Tensor,
               ) -> Tensor | None:
    """Returns ``clamp(round(x / scale), low, high) + shift`` as unsigned bytes.

    Codes are those of ``functional.product_input`` to the last bit, and the values stay where
    they are in memory (channels last stays so).

    Args:
        x: float32 CPU tensor whose values lie in memory without gaps; channels last in memory
            where there is more than one scale.
        scale, low, high: (1,) or (C,) float32; codes less zero point.
        shift: (1,) or (C,) int32 that brings them to 0 to 255.

    Returns:
        uint8, shape and strides of ``x``; ``None`` where a value is not a number, which no byte
        stands for.
    """
    out = torch.empty_like(x, dtype=torch.uint8)
    if not x.numel():
        return out
    one = scale.numel() == 1
    values, bytes_ = (_as_in_memory(value, scale.numel()).numpy() for value in (x.detach(), out))
    found = np.zeros(-(-x.numel() // PART) if one else len(values), np.int32)
    sides = [value.numpy() for value in (scale, low, high, shift)]
    if one:
        sides = [value[0] for value in sides]
    loops = (_serial_flat, _parallel_flat) if one else (_serial_rows, _parallel_rows)
    run_loop(*loops, 4 * x.numel(), values, *sides, bytes_, found)
    return None if found.any() else out


def _as_in_memory(x: Tensor, channels: int) -> Tensor:
    """Views values in the order that they have in memory: (L,), or (L / channels, channels)."""
    flat = x.as_strided((x.numel(),), (1,), x.storage_offset())
    return flat if channels == 1 else flat.view(-1, channels)
