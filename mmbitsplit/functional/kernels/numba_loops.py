"""Loops compiled with Numba, parallel over output channels or rows; imported when first needed.

Each has a plain torch counterpart (``descent``, ``error_feedback``, ``affine``) that gives the
same codes. Rows never exchange anything, so the result does not depend on the number of threads.
"""

import numba
import numpy as np
import torch
from torch import Tensor

# Columns whose moves are collected before the other columns hear of them: what lies inside stays
# in the first cache.
BLOCK = 64
# Rows that share a block of the gram while it is in the second cache.
TILE = 16
# Most parts that threads share out among themselves.
CHUNKS = 1024
# Below this many multiplications of the dense product, starting threads costs more than it brings.
SERIAL_WORK = 1 << 18
OPTIONS = dict(cache=True, error_model='numpy', nogil=True, fastmath={'contract', 'nsz'})
SUMMING = dict(OPTIONS, fastmath={'contract', 'nsz', 'reassoc'})  # sums of vectors, not in order


def _descent_sweep(values, product, target, gram, step, low, high, moved,
                   chunks):  # pragma: no cover
    """Visits every column of every open row once.

    Args:
        values, product: (G, M, N), changed in place; ``product`` is ``codes @ gram``.
        target: (G, M, N).
        gram: (G, N, N) symmetric.
        moved: (G, M) int64: a negative number closes a row; written for the others: how many
            of its elements moved.
        chunks: Parts that threads take; buffers are allocated once a part.
    """
    groups, rows, columns = values.shape
    tiles = -(-rows // TILE)
    for chunk in numba.prange(chunks):
        residual = np.empty(BLOCK, values.dtype)
        change = np.empty(BLOCK, values.dtype)
        index = np.empty(BLOCK, np.int64)
        for tile in range(groups * tiles * chunk // chunks,
                          groups * tiles * (chunk + 1) // chunks):
            g, first = tile // tiles, tile % tiles * TILE
            _sweep_tile(values[g], product[g], target[g], gram[g], step, low, high, moved[g],
                        first, min(first + TILE, rows), residual, change, index)


@numba.njit(**OPTIONS)
def _sweep_tile(values, product, target, gram, step, low, high, moved, first, last, residual,
                change, index):  # pragma: no cover
    """The same for rows ``first`` to ``last`` of one group; the buffers hold a block."""
    columns = values.shape[1]
    half = step * values.dtype.type(0.5)
    for m in range(first, last):
        moved[m] = min(moved[m], 0)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        for m in range(first, last):
            if moved[m] < 0:
                continue
            for k in range(start, stop):
                residual[k - start] = target[m, k] - product[m, k]
            count = 0
            for k in range(start, stop):
                curvature = gram[k, k]
                if curvature <= 0.0:
                    continue
                # A division takes longer than all the rest, and most elements stay.
                if abs(residual[k - start]) < half * curvature:
                    continue
                old = values[m, k]
                new = np.rint(old + residual[k - start] / (step * curvature))
                new = min(max(new, low), high)
                if new != old:
                    values[m, k] = new
                    delta = (new - old) * step
                    for j in range(k, stop):
                        residual[j - start] -= delta * gram[k, j]
                    index[count], change[count] = k, delta
                    count += 1
            # After the first sweep few elements move: adding their rows of the gram, four at a
            # time, is less work than a matrix product over all.
            i = 0
            while i + 4 <= count:
                p, q, r, s = index[i], index[i + 1], index[i + 2], index[i + 3]
                dp, dq, dr, ds = change[i], change[i + 1], change[i + 2], change[i + 3]
                for j in range(columns):
                    product[m, j] += (dp * gram[p, j] + dq * gram[q, j]
                                      + (dr * gram[r, j] + ds * gram[s, j]))
                i += 4
            while i < count:
                p, dp = index[i], change[i]
                for j in range(columns):
                    product[m, j] += dp * gram[p, j]
                i += 1
            moved[m] += count


_serial_sweep = numba.njit(**OPTIONS)(_descent_sweep)
_parallel_sweep = numba.njit(parallel=True, **OPTIONS)(_descent_sweep)


def descent_sweep(values: Tensor, product: Tensor, target: Tensor, gram: Tensor, step: float,
                  low: float, high: float, moved: Tensor) -> None:
    """One sweep over contiguous CPU tensors; see ``descent.sweep_`` and ``_descent_sweep``."""
    groups, rows, columns = values.shape
    arrays = [value.numpy() for value in (values, product, target, gram)]
    real = arrays[0].dtype.type  # a float64 scalar would turn float32 rows into float64 ones
    work = groups * rows * columns * columns
    chunks = 1 if work <= SERIAL_WORK else min(CHUNKS, groups * -(-rows // TILE))
    run_loop(_serial_sweep, _parallel_sweep, work, *arrays, real(step), real(low), real(high),
         moved.numpy(), chunks)


def _feedback_block(block, codes, scale, factor, low, high):  # pragma: no cover
    """Rounds the columns of a block one after another, errors going to the later ones.

    Args:
        block: (G, M, B) what is left to round, changed in place.
        codes: (G, M, B), written.
        scale: (G, M).
        factor: (G, B, B) upper triangular.
    """
    groups, rows, columns = block.shape
    for row in numba.prange(groups * rows):
        g, m = row // rows, row % rows
        for k in range(columns):
            value = block[g, m, k]
            code = min(max(np.rint(value / scale[g, m]), low), high)
            codes[g, m, k] = code
            error = (value - code * scale[g, m]) / factor[g, k, k]
            for j in range(k + 1, columns):
                block[g, m, j] -= error * factor[g, k, j]


_serial_feedback = numba.njit(**OPTIONS)(_feedback_block)
_parallel_feedback = numba.njit(parallel=True, **OPTIONS)(_feedback_block)


def feedback_block(block: Tensor, codes: Tensor, scale: Tensor, factor: Tensor, low: float,
                   high: float) -> None:
    """Error feedback inside one block of contiguous CPU tensors; see ``error_feedback``."""
    arrays = [value.numpy() for value in (block, codes, scale, factor)]
    real = arrays[0].dtype.type
    run_loop(_serial_feedback, _parallel_feedback, block.numel() * block.shape[-1], *arrays,
         real(low), real(high))


def _quantize_rows(x, scale, low, high, out):  # pragma: no cover
    """Divides, rounds and clamps (R, L) rows; scale, low, high (C,) repeat every C rows."""
    rows, length = x.shape
    channels = scale.shape[0]
    for row in numba.prange(rows):
        c = row % channels
        step, smallest, largest = scale[c], low[c], high[c]
        for j in range(length):
            code = np.rint(x[row, j] / step)
            if code < smallest:  # written so that NaN stays NaN
                code = smallest
            elif code > largest:
                code = largest
            out[row, j] = code


_serial_quantize = numba.njit(**OPTIONS)(_quantize_rows)
_parallel_quantize = numba.njit(parallel=True, **OPTIONS)(_quantize_rows)


def quantize_rows(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns ``clamp(round(x / scale), low, high)`` in one pass over contiguous CPU tensors.

    Args:
        x: (R, L).
        scale, low, high: (C,) of the dtype of x, R a multiple of C.
    """
    out = torch.empty_like(x)
    run_loop(_serial_quantize, _parallel_quantize, 4 * x.numel(),
         *(value.detach().numpy() for value in (x, scale, low, high, out)))
    return out


def _small_integers(x, middle, out, sums):  # pragma: no cover
    """Writes ``x - middle`` (R, L) as int8, and its sums over rows; middle is (R,)."""
    rows, length = x.shape
    for row in numba.prange(rows):
        total, less = np.int64(0), middle[row]
        for j in range(length):
            value = np.int8(x[row, j] - less)
            out[row, j] = value
            total += value
        sums[row] = total


_serial_integers = numba.njit(**OPTIONS)(_small_integers)
_parallel_integers = numba.njit(parallel=True, **OPTIONS)(_small_integers)


def small_integers(x: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """See ``round_trip.small_integers``; contiguous CPU tensors."""
    out = torch.empty(x.shape, dtype=torch.int8)
    sums = torch.empty(x.shape[0], dtype=torch.int64)
    arrays = [value.numpy() for value in (x.detach(), middle.to(x), out, sums)]
    run_loop(_serial_integers, _parallel_integers, x.numel(), *arrays)
    return out, sums


def _split_bytes(y, step, parts, sums):  # pragma: no cover
    """Rounds (R, L) rows to multiples of their step; two bytes, and sums of it and its square."""
    rows, length = y.shape
    for row in numba.prange(rows):
        inverse = 1.0 / step[row]
        total, squares = np.int64(0), np.int64(0)
        for j in range(length):
            value = np.int64(np.rint(y[row, j] * inverse))
            low = ((value + 128) & 255) - 128
            parts[0, row, j] = np.int8(low)
            parts[1, row, j] = np.int8((value - low) >> 8)
            total += value
            squares += value * value
        sums[0, row], sums[1, row] = total, squares


_serial_split = numba.njit(**OPTIONS)(_split_bytes)
_parallel_split = numba.njit(parallel=True, **OPTIONS)(_split_bytes)


def split_bytes(y: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds contiguous CPU rows (R, L) to multiples of (R,) float64 steps, at most 2^14 of them.

    Returns:
        (2, R, L) int8, low and high byte of ``round(y / step)``, both signed; (2, R) int64, the
        sums of that and of its square.
    """
    parts = torch.empty(2, *y.shape, dtype=torch.int8)
    sums = torch.empty(2, y.shape[0], dtype=torch.int64)
    run_loop(_serial_split, _parallel_split, 4 * y.numel(),
         *(value.detach().numpy() for value in (y, step.contiguous(), parts, sums)))
    return parts, sums


def _round_trip_errors(x, scale, low, high, errors):  # pragma: no cover
    """Sums squared round-trip errors of (R, L) rows at (F, C) scales into (F, R) float64."""
    rows, length = x.shape
    candidates, channels = scale.shape
    for row in numba.prange(rows):
        c = row % channels
        for f in range(candidates):
            errors[f, row] = 0.0
        # A piece stays in the first cache for all candidates; float32 sums stay short.
        for start in range(0, length, 1024):
            stop = min(start + 1024, length)
            for f in range(candidates):
                step, smallest, largest = scale[f, c], low[f, c], high[f, c]
                inverse = x.dtype.type(1) / step
                part = x.dtype.type(0)
                for j in range(start, stop):
                    code = min(max(np.rint(x[row, j] * inverse), smallest), largest)
                    error = x[row, j] - step * code
                    part += error * error
                errors[f, row] += part


_serial_errors = numba.njit(**SUMMING)(_round_trip_errors)
_parallel_errors = numba.njit(parallel=True, **SUMMING)(_round_trip_errors)


def round_trip_errors(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """See ``round_trip.round_trip_errors``; contiguous CPU tensors."""
    errors = torch.empty(scale.shape[0], x.shape[0], dtype=torch.float64)
    run_loop(_serial_errors, _parallel_errors, x.numel() * scale.shape[0],
         *(value.detach().numpy() for value in (x, scale, low, high, errors)))
    return errors


def run_loop(serial, parallel, work: int, *arguments) -> None:
    """Calls a compiled loop, in parallel where it pays, with as many threads as torch has.

    More threads would fight with torch's own for the cores; and when Numba starts its OpenMP
    threads it also sets the number that torch uses, which is put back here.
    """
    threads = torch.get_num_threads()
    if work <= SERIAL_WORK or threads == 1:
        serial(*arguments)
    else:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        parallel(*arguments)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
