"""Loops over codes that several widths share, compiled with Numba; imported when first needed.

Rows never exchange anything, so the result does not depend on the number of threads. A code of the
widest width has those of all widths in it: ``narrow`` says how. ``sign`` is 0 where a narrower code
is the wider one shifted (``'floor'``), 1 where its magnitude is (``'planes'``).
"""

import numba
import numpy as np
import torch
from torch import Tensor

from mmbitsplit.functional.kernels.numba_loops import CHUNKS, OPTIONS, run_loop

TILE = 8  # rows that share a row of each gram while it is in the cache


@numba.njit(**OPTIONS)
def narrow(code, shift, sign):  # pragma: no cover
    """The code of a width ``shift`` bits narrower."""
    if sign and code < 0:
        return -((-code) >> shift)
    return code >> shift


@numba.njit(**OPTIONS)
def _first(code, shift, sign):  # pragma: no cover
    """Smallest code of the widest whose narrower one is this."""
    if sign and code <= 0:
        return -(((-code) << shift) + (1 << shift) - 1)
    return code << shift


@numba.njit(**OPTIONS)
def _last(code, shift, sign):  # pragma: no cover
    """Largest code of the widest whose narrower one is this."""
    if sign and code < 0:
        return -((-code) << shift)
    return (code << shift) + (1 << shift) - 1


@numba.njit(**OPTIONS)
def _descend(root, level, wanted, shifts, sign, low, high):  # pragma: no cover
    """The code of the widest that has this code at a level and is near at the wider ones.

    From the level on, each wider width takes what is nearest to its own wish among the codes that
    the width before leaves.
    """
    low = max(low, _first(root, shifts[level], sign))
    high = min(high, _last(root, shifts[level], sign))
    for k in range(level + 1, shifts.shape[0]):
        code = min(max(np.int64(np.rint(wanted[k])), narrow(low, shifts[k], sign)),
                   narrow(high, shifts[k], sign))
        low = max(low, _first(code, shifts[k], sign))
        high = min(high, _last(code, shifts[k], sign))
    return low


@numba.njit(**OPTIONS)
def _best_code(code, wanted, curvature, shifts, sign, low, high):  # pragma: no cover
    """The code of least ``sum_k curvature_k (code_k - wanted_k)^2`` among the likely ones.

    Likely are, for each width, its two codes nearest to what it wishes.

    Args:
        code: Today's, taken where nothing is better.
        wanted: (K,) real code that each width wishes for.
        curvature: (K,).
        shifts: (K,) bits that each width lacks to the widest, falling to 0.
        low, high: Range of the code.
    """
    best, least = code, np.inf
    levels = shifts.shape[0]
    for candidate in range(-1, 2 * levels):
        if candidate < 0:
            tried = code
        else:
            k = candidate // 2
            nearest = np.rint(wanted[k])
            if candidate % 2:
                nearest += 1.0 if wanted[k] > nearest else -1.0
            smallest, largest = narrow(low, shifts[k], sign), narrow(high, shifts[k], sign)
            root = np.int64(min(max(nearest, smallest), largest))
            tried = _descend(root, k, wanted, shifts, sign, low, high)
            if tried == best:
                continue
        total = 0.0
        for k in range(levels):
            away = narrow(tried, shifts[k], sign) - wanted[k]
            total += curvature[k] * away * away
        if total < least * (1.0 - 1e-12):
            best, least = tried, total
    return best


def _nested_sweep(codes, residual, gram, scale, importance, shifts, settled, sign, lowest,
                  highest, moved, chunks):  # pragma: no cover
    """Visits every column of every open row once.

    Args:
        codes: (G, M, N) int32 of the widest, changed in place.
        residual: (G, M, K, N) ``cross - weight @ gram`` of each width, kept up to date.
        gram: (G, N, K, N) symmetric in N.
        scale: (G, M, K) real units a code step.
        importance: (G, M, K) of each width's error.
        shifts: (K,) int64.
        settled: How many of the first widths keep their codes, those before the last of them
            as well.
        sign: 0 or 1.
        lowest, highest: Range of the widest.
        moved: (G, M) int64: a negative number closes a row; written for the others.
        chunks: Parts that threads take.
    """
    groups, rows, columns = codes.shape
    levels = shifts.shape[0]
    tiles = -(-rows // TILE)
    for chunk in numba.prange(chunks):
        wanted = np.empty(levels, np.float64)
        curvature = np.empty(levels, np.float64)
        for tile in range(groups * tiles * chunk // chunks,
                          groups * tiles * (chunk + 1) // chunks):
            g, first = tile // tiles, tile % tiles * TILE
            last = min(first + TILE, rows)
            for m in range(first, last):
                moved[g, m] = min(moved[g, m], 0)
            for n in range(columns):
                for m in range(first, last):
                    if moved[g, m] < 0:
                        continue
                    code = np.int64(codes[g, m, n])
                    near = True
                    for k in range(levels):
                        step = scale[g, m, k]
                        curve = step * step * gram[g, n, k, n]
                        away = residual[g, m, k, n] * step / curve if curve > 0.0 else 0.0
                        near = near and abs(away) <= 0.5
                        wanted[k] = narrow(code, shifts[k], sign) + away
                        curvature[k] = importance[g, m, k] * curve
                    if near:
                        continue
                    low, high = lowest, highest
                    if settled > 0:
                        shift = shifts[settled - 1]
                        kept = narrow(code, shift, sign)
                        low = max(low, _first(kept, shift, sign))
                        high = min(high, _last(kept, shift, sign))
                    new = _best_code(code, wanted, curvature, shifts, sign, low, high)
                    if new == code:
                        continue
                    codes[g, m, n] = new
                    moved[g, m] += 1
                    for k in range(levels):
                        change = narrow(new, shifts[k], sign) - narrow(code, shifts[k], sign)
                        if change != 0:
                            delta = residual.dtype.type(change) * scale[g, m, k]
                            for j in range(columns):
                                residual[g, m, k, j] -= delta * gram[g, n, k, j]


_serial_sweep = numba.njit(**OPTIONS)(_nested_sweep)
_parallel_sweep = numba.njit(parallel=True, **OPTIONS)(_nested_sweep)


def nested_sweep(codes: Tensor, residual: Tensor, gram: Tensor, scale: Tensor, importance: Tensor,
                 shifts: list[int], sign: bool, limits: tuple[int, int], moved: Tensor,
                 settled: int = 0) -> None:
    """One sweep over contiguous CPU tensors; see ``_nested_sweep``."""
    groups, rows, columns = codes.shape
    work = codes.numel() * columns * len(shifts)
    chunks = min(CHUNKS, groups * -(-rows // TILE))
    run_loop(_serial_sweep, _parallel_sweep, work, codes.numpy(), residual.numpy(), gram.numpy(),
             scale.numpy(), importance.numpy(), np.array(shifts), settled, int(sign), *limits,
             moved.numpy(), chunks)


def _nested_feedback(codes, target, lower, scale, offset, importance, shifts, sign, lowest,
                     highest, pull):  # pragma: no cover
    """Rounds columns from the last to the first, each width's errors going to earlier ones.

    Args:
        codes: (G, M, N) int32, written.
        target: (G, M, K, N) each width's float solution.
        lower: (G, N, K, N) rows of the Cholesky factor of each width's gram.
        scale, importance: (G, M, K).
        offset: Added to each code, in steps.
        shifts, sign, lowest, highest: See ``_nested_sweep``.
        pull: (G, M, K, N) zeros, changed.
    """
    groups, rows, columns = codes.shape
    levels = shifts.shape[0]
    for row in numba.prange(groups * rows):
        g, m = row // rows, row % rows
        wanted = np.empty(levels, np.float64)
        curvature = np.empty(levels, np.float64)
        for n in range(columns - 1, -1, -1):
            for k in range(levels):
                root = lower[g, n, k, n]
                value = target[g, m, k, n] + pull[g, m, k, n] / root
                wanted[k] = value / scale[g, m, k] - offset
                steps = root * scale[g, m, k]
                curvature[k] = importance[g, m, k] * steps * steps
            nearest = np.int64(min(max(np.rint(wanted[levels - 1]), lowest), highest))
            code = _best_code(nearest, wanted, curvature, shifts, sign, lowest, highest)
            codes[g, m, n] = code
            for k in range(levels):
                real = (narrow(code, shifts[k], sign) + offset) * scale[g, m, k]
                error = target[g, m, k, n] - pull.dtype.type(real)
                for j in range(n):
                    pull[g, m, k, j] += error * lower[g, n, k, j]


_serial_feedback = numba.njit(**OPTIONS)(_nested_feedback)
_parallel_feedback = numba.njit(parallel=True, **OPTIONS)(_nested_feedback)


def nested_feedback(codes: Tensor, target: Tensor, lower: Tensor, scale: Tensor, offset: float,
                    importance: Tensor, shifts: list[int], sign: bool, limits: tuple[int, int],
                    ) -> None:
    """Error feedback for all widths at once over contiguous CPU tensors."""
    work = codes.numel() * codes.shape[-1] * len(shifts)
    run_loop(_serial_feedback, _parallel_feedback, work, codes.numpy(), target.numpy(),
             lower.numpy(), scale.numpy(), offset, importance.numpy(), np.array(shifts), int(sign),
             *limits, torch.zeros_like(target).numpy())


def _range_fits(target, weight, tops, reach, offset, shifts, sign, lowest, highest, least, errors,
                scales):  # pragma: no cover
    """Rounds rows of the last width to reach each of some ranges; fits a scale of every width.

    Args:
        target: (G, M, K, N) what each width wants to be.
        weight: (G, K, N) of its squared errors.
        tops: (R, G, M) the ranges.
        reach: Steps that a range has.
        offset, shifts, sign, lowest, highest: See ``_nested_feedback``.
        least: The scale of a row that codes do not follow.
        errors, scales: (R, G, M, K), written.
    """
    groups, rows, levels, columns = target.shape
    for row in numba.prange(groups * rows):
        g, m = row // rows, row % rows
        codes = np.empty(columns, np.int64)
        for r in range(tops.shape[0]):
            inverse = reach / tops[r, g, m]
            for n in range(columns):
                wanted = np.rint(target[g, m, levels - 1, n] * inverse - offset)
                codes[n] = np.int64(min(max(wanted, lowest), highest))
            for k in range(levels):
                energy, correlation, whole = 0.0, 0.0, 0.0
                for n in range(columns):
                    level = narrow(codes[n], shifts[k], sign) + offset
                    value, of = target[g, m, k, n], weight[g, k, n]
                    energy += of * level * level
                    correlation += of * level * value
                    whole += of * value * value
                scale = least
                if energy > 0.0 and correlation > 0.0:
                    scale = correlation / energy
                scales[r, g, m, k] = scale
                errors[r, g, m, k] = max(
                    whole - scale * (2.0 * correlation - scale * energy), 0.0)


_serial_fits = numba.njit(**OPTIONS)(_range_fits)
_parallel_fits = numba.njit(parallel=True, **OPTIONS)(_range_fits)


def range_fits(target: Tensor, weight: Tensor, tops: Tensor, reach: int, offset: float,
               shifts: list[int], sign: bool, limits: tuple[int, int], least: float,
               ) -> tuple[Tensor, Tensor]:
    """Errors and scales (R, G, M, K), float64, of CPU tensors; see ``_range_fits``."""
    errors = torch.empty(*tops.shape, len(shifts), dtype=torch.float64)
    scales = torch.empty_like(errors)
    run_loop(_serial_fits, _parallel_fits, 8 * target.numel() * tops.shape[0],
             *(value.contiguous().numpy() for value in (target, weight, tops)), reach, offset,
             np.array(shifts), int(sign), *limits, least, errors.numpy(), scales.numpy())
    return errors, scales
