"""Maps between a model, channels first in memory, and products of bytes, channels last."""

import numba
import numpy as np
import torch
from torch import Tensor

from mmbitsplit.functional.kernels.numba_loops import OPTIONS, run_loop

# Positions that are rounded at a time: what is read and written stays in the first cache.
ROUNDED = 128
# Positions and channels that are turned at a time: whole lines of the cache, few pages.
TURNED, CHANNELS = 512, 16


@numba.njit(**OPTIONS)
def _round_row(x, scale, low, high, shift, place, codes):  # pragma: no cover
    """Codes of a row into byte ``place`` of words; returns how many values are not a number."""
    missing = np.int32(0)
    for j in range(x.shape[0]):
        code = np.rint(x[j] / scale)
        missing += code != code
        code = min(max(code, low), high)
        word = np.uint32(np.int32(code) + shift)
        codes[j] = word if place == 0 else codes[j] | (word << np.uint32(8 * place))
    return missing


def _bytes_of_maps(x, scale, low, high, shift, together, out, found):  # pragma: no cover
    """Scales, limits and shifts (1,) or (C,); x (B, C, P), found (parts,).

    ``together`` channels, 4 or 1, are written at once: out (B, P, C / together) uint32 or uint8.
    """
    batch, channels, positions = x.shape
    blocks = found.shape[0] // batch
    for part in numba.prange(found.shape[0]):
        b, first = part // blocks, part % blocks * ROUNDED
        last = min(first + ROUNDED, positions)
        words = np.empty(ROUNDED, np.uint32)
        missing = np.int32(0)
        for c in range(0, channels, together):
            for k in range(together):
                s = c + k if scale.shape[0] > 1 else 0
                missing += _round_row(x[b, c + k, first:last], scale[s], low[s], high[s],
                                      shift[s], k, words)
            written = out[b, first:last, c // together]
            for j in range(written.shape[0]):
                written[j] = words[j]
        found[part] = missing


def _channels_first(x, out, parts):  # pragma: no cover
    """x (B, P, C), out (B, C, P)."""
    batch, positions, channels = x.shape
    blocks = parts // batch
    for part in numba.prange(parts):
        b, first = part // blocks, part % blocks * TURNED
        last = min(first + TURNED, positions)
        for c_first in range(0, channels, CHANNELS):
            c_last = min(c_first + CHANNELS, channels)
            for start in range(first, last, CHANNELS):
                # A loop of known length is turned into vectors.
                if start + CHANNELS <= last:
                    for c in range(c_first, c_last):
                        read = x[b, start:start + CHANNELS, c]
                        written = out[b, c, start:start + CHANNELS]
                        for j in range(CHANNELS):
                            written[j] = read[j]
                else:
                    for c in range(c_first, c_last):
                        for j in range(start, last):
                            out[b, c, j] = x[b, j, c]


_serial_bytes = numba.njit(**OPTIONS)(_bytes_of_maps)
_parallel_bytes = numba.njit(parallel=True, **OPTIONS)(_bytes_of_maps)
_serial_first = numba.njit(**OPTIONS)(_channels_first)
_parallel_first = numba.njit(parallel=True, **OPTIONS)(_channels_first)


def byte_maps(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, shift: Tensor) -> Tensor | None:
    """``byte_codes`` of maps that lie channels first in memory, as bytes channels last.

    Args:
        x: (B, C, H, W) float32 CPU tensor, contiguous.
        scale, low, high: (1,) or (C,) float32; codes less zero point.
        shift: (1,) or (C,) int32 that brings them to 0 to 255.

    Returns:
        (B, C, H, W) uint8, channels last in memory; ``None`` where a value is not a number.
    """
    batch, channels, height, width = x.shape
    out = torch.empty((batch, height * width, channels), dtype=torch.uint8)
    if x.numel():
        together = 1 if channels % 4 else 4
        found = np.zeros(batch * -(-height * width // ROUNDED), np.int32)
        written = out.numpy() if together == 1 else out.numpy().view(np.uint32)
        run_loop(_serial_bytes, _parallel_bytes, 4 * x.numel(),
                 x.detach().view(batch, channels, -1).numpy(),
                 *(side.numpy() for side in (scale, low, high, shift)), together, written, found)
        if found.any():
            return None
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


def channels_first(x: Tensor) -> Tensor:
    """A copy of maps that lie channels last in memory, contiguous.

    Args:
        x: (B, C, H, W) float32 CPU tensor without gradient, channels last in memory.
    """
    batch, channels, height, width = x.shape
    out = torch.empty((batch, channels, height * width))
    if x.numel():
        run_loop(_serial_first, _parallel_first, 4 * x.numel(),
                 x.permute(0, 2, 3, 1).reshape(batch, height * width, channels).numpy(),
                 out.numpy(), batch * -(-height * width // TURNED))
    return out.view(x.shape)
