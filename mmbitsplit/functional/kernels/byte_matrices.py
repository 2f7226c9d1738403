"""Rounds activations to matrices of bytes, and ends products of them, each in one pass."""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from mmbitsplit.functional.kernels.numba_loops import OPTIONS, run_loop

# What is summed of the bytes of a matrix.
NOTHING, ROWS, COLUMNS = range(3)


def _round(flat, sizes, strides, scale, low, high, shift, summed, out, sums,
           found):  # pragma: no cover
    """Rows of (batch, head, row) that begin anywhere in ``flat`` (L,) to ``out`` (G, R, C)."""
    heads, rows, length = sizes[1], sizes[2], out.shape[2]
    kinds = scale.shape[0]
    for g in numba.prange(out.shape[0]):
        kind = g % heads % kinds
        step, smallest, largest = scale[kind], low[kind], high[kind]
        add = shift[kind]
        start = g // heads * strides[0] + g % heads * strides[1]
        missing = np.int32(0)
        for row in range(rows):
            # Views that begin at 0: else the loop is not turned into vectors.
            begin = start + row * strides[2]
            values, codes = flat[begin:begin + length], out[g, row]
            total = np.int32(0)
            for j in range(length):
                code = np.rint(values[j] / step)
                missing += code != code
                code = min(max(code, smallest), largest)
                byte = np.int32(np.int32(code) + add)
                codes[j] = byte
                total = np.int32(total + byte)
            if summed == ROWS:
                sums[g, row] = total
            elif summed == COLUMNS:
                added = sums[g]
                for j in range(length):
                    added[j] = np.int32(added[j] + codes[j])
        found[g] = missing


def _end(products, row_sums, column_sums, a_zero, b_zero, inner, factor, heads,
         ):  # pragma: no cover
    """Takes off what bytes that stand for zero add, and scales: (G, M, N) int32 become float32."""
    for g in numba.prange(products.shape[0]):
        head = g % heads
        a, b = a_zero[head % a_zero.shape[0]], b_zero[head % b_zero.shape[0]]
        scale, both = factor[head % factor.shape[0]], inner * a * b
        columns = column_sums[g]
        for row in range(products.shape[1]):
            values, less = products[g, row], both
            if b != 0:
                less -= b * row_sums[g, row]
            if a != 0:
                for j in range(values.shape[0]):
                    value = np.int32(values[j] + less - a * columns[j])
                    values[j] = np.float32(np.float32(value) * scale).view(np.int32)
            else:
                for j in range(values.shape[0]):
                    value = np.int32(values[j] + less)
                    values[j] = np.float32(np.float32(value) * scale).view(np.int32)


_serial_round = numba.njit(**OPTIONS)(_round)
_parallel_round = numba.njit(parallel=True, **OPTIONS)(_round)
_serial_end = numba.njit(**OPTIONS)(_end)
_parallel_end = numba.njit(parallel=True, **OPTIONS)(_end)


@dataclass(frozen=True)
class ByteGrid:
    """How one side of a product becomes bytes; one of each, or one a head.

    Args:
        scale, low, high: (1,) or (H,) float32; codes less zero point.
        zero: (1,) or (H,) int32, the byte that stands for zero: what is added to them.
    """

    scale: Tensor
    low: Tensor
    high: Tensor
    zero: Tensor


@dataclass(frozen=True)
class ByteMatrices:
    """Bytes of one side of a product.

    Args:
        bytes: (G, rows, columns) uint8 or int8, as they are in memory or transposed.
        sums: (G, ...) int32 along the dimension that a product sums over; of no use where they
            were not asked for.
    """

    bytes: Tensor
    sums: Tensor


def byte_matrices(x: Tensor, grid: ByteGrid, dim: int | None, signed: bool) -> ByteMatrices | None:
    """Rounds the matrices of a tensor, whatever order they have in memory.

    Args:
        x: (B, H, rows, columns) float32 on the CPU.
        grid: Codes are ``clamp(round(x / scale), low, high) + zero``.
        dim: -1 or -2, along which bytes are summed; ``None`` for no sums.
        signed: Whether bytes are int8.

    Returns:
        The bytes; ``None`` where a value is not a number, which no byte stands for.
    """
    turned = x.stride(-1) != 1 and x.stride(-2) == 1
    if turned:
        x, dim = x.transpose(-1, -2), None if dim is None else -3 - dim
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    summed = NOTHING if dim is None else ROWS if dim == -1 else COLUMNS
    groups = x.shape[0] * x.shape[1]
    out = torch.empty((groups, *x.shape[-2:]), dtype=torch.int8 if signed else torch.uint8)
    sums = torch.zeros((groups, 1 if dim is None else x.shape[-2 if dim == -1 else -1]),
                       dtype=torch.int32)
    found = np.zeros(groups, np.int32)
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    flat = x.detach().as_strided((last + 1,), (1,))
    run_loop(_serial_round, _parallel_round, 4 * x.numel(), flat.numpy(),
             np.array(x.shape[:3]), np.array(x.stride()[:3]),
             *(value.numpy() for value in (grid.scale, grid.low, grid.high, grid.zero)), summed,
             out.numpy(), sums.numpy(), found)
    if found.any():
        return None
    return ByteMatrices(out.transpose(-1, -2) if turned else out, sums)


def end_products(products: Tensor, a: ByteMatrices, b: ByteMatrices, a_zero: Tensor,
                 b_zero: Tensor, factor: Tensor, heads: int) -> Tensor:
    """Makes sums of products of bytes what codes less zero points give, in real units.

    Args:
        products: (G, M, N) int32, contiguous; becomes what is returned.
        a: (G, M, K), with sums (G, M) unless ``b_zero`` is 0.
        b: (G, K, N), with sums (G, N) unless ``a_zero`` is 0.
        a_zero, b_zero: (1,) or (H,) int32, the bytes that stand for zero.
        factor: (1,) or (H,) float32, the scales of both.
        heads: H.

    Returns:
        (G, M, N) float32.
    """
    run_loop(_serial_end, _parallel_end, 4 * products.numel(), products.numpy(), a.sums.numpy(),
             b.sums.numpy(), a_zero.numpy(), b_zero.numpy(), np.int32(a.bytes.shape[-1]),
             factor.numpy(), heads)
    return products.view(torch.float32)
