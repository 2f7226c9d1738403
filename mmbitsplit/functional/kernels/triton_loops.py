"""Inner loops as Triton kernels for CUDA devices; imported when first needed.

Each has a plain torch counterpart (``descent``, ``error_feedback``) that gives the same codes.
A program holds some rows (output channels) of one group in registers and walks the columns;
rows need nothing of one another. Every operation is rounded by itself (``_divide``,
``enable_fp_fusion=False``), so that a kernel computes on a device what it does when interpreted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # of a program at most; one warp for every four
# x + c - c is x rounded half to even where numbers as large as c are whole: Triton's own rint
# is CUDA's, which the interpreter does not have.
ROUNDERS = {torch.float32: 1.5 * 2 ** 23, torch.float64: 1.5 * 2 ** 52}


def descent_block(values: Tensor, residual: Tensor, gram: Tensor, step: float, low: float,
                  high: float) -> None:
    """Visits the columns of a block one after another.

    Args:
        values, residual: (G, M, B) contiguous, float32 or float64, changed in place.
        gram: (G, B, B) contiguous.
        step: What one unit of a value adds to the code, a power of two.
        low, high: Whole numbers, range of the values.
    """
    _launch(_descent_kernel, values, (values, residual, gram), step, low, high)


def feedback_block(block: Tensor, codes: Tensor, scale: Tensor, factor: Tensor, low: float,
                   high: float) -> None:
    """Rounds the columns of a block one after another, errors going to the later ones.

    Args:
        block: (G, M, B) contiguous, float32 or float64, what is left to round, changed in place.
        codes: (G, M, B) contiguous, written.
        scale: (G, M) contiguous.
        factor: (G, B, B) contiguous, upper triangular.
        low, high: Whole numbers, range of the codes.
    """
    _launch(_feedback_kernel, block, (block, codes, scale, factor), low, high)


def _launch(kernel, like: Tensor, tensors: tuple[Tensor, ...], *numbers: float) -> None:
    """Runs a kernel on all rows of ``like`` (G, M, B), on the device where the tensors are."""
    assert all(one.is_contiguous() and one.dtype == like.dtype for one in tensors)
    groups, rows, columns = like.shape
    if like.numel() == 0:
        return
    at_once = min(ROWS, triton.next_power_of_2(rows))
    with torch.cuda.device_of(like):  # Triton launches on the current device
        kernel[groups * triton.cdiv(rows, at_once),](
            *tensors, *map(float, numbers), rows, columns, ROUNDER=ROUNDERS[like.dtype],
            ROWS=at_once, COLUMNS=triton.next_power_of_2(columns),
            num_warps=max(1, at_once // 4), enable_fp_fusion=False)


@triton.jit
def _descent_kernel(values, residual, gram, step, low, high, rows, columns,
                    ROUNDER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    group, row, column = _tile(rows, ROWS, COLUMNS)
    place = (group * rows + row[:, None]) * columns + column[None, :]  # (ROWS, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    current = tl.load(values + place, mask=inside, other=0.0)
    remaining = tl.load(residual + place, mask=inside, other=0.0)
    for k in range(columns):
        gram_row = gram + (group * columns + k) * columns
        curvature = tl.load(gram_row + k)
        old = _take_column(current, column, k)
        wanted = old + _divide(_take_column(remaining, column, k), step * curvature)
        new = tl.where(curvature > 0, _nearest(wanted, low, high, ROUNDER), old)
        change = (new - old) * step  # (ROWS,)
        current = tl.where((column == k)[None, :], new[:, None], current)
        weights = tl.load(gram_row + column, mask=column < columns, other=0.0)
        remaining -= change[:, None] * weights[None, :]
    tl.store(values + place, current, mask=inside)
    tl.store(residual + place, remaining, mask=inside)


@triton.jit
def _feedback_kernel(block, codes, scale, factor, low, high, rows, columns,
                     ROUNDER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    group, row, column = _tile(rows, ROWS, COLUMNS)
    place = (group * rows + row[:, None]) * columns + column[None, :]  # (ROWS, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    remaining = tl.load(block + place, mask=inside, other=0.0)
    unit = tl.load(scale + group * rows + row, mask=row < rows, other=1.0)  # (ROWS,)
    rounded = tl.zeros_like(remaining)
    for k in range(columns):
        factor_row = factor + (group * columns + k) * columns
        value = _take_column(remaining, column, k)
        code = _nearest(_divide(value, unit), low, high, ROUNDER)
        error = _divide(value - code * unit, tl.load(factor_row + k))
        rounded = tl.where((column == k)[None, :], code[:, None], rounded)
        weights = tl.load(factor_row + column, mask=(column > k) & (column < columns), other=0.0)
        remaining -= error[:, None] * weights[None, :]
    tl.store(codes + place, rounded, mask=inside)
    tl.store(block + place, remaining, mask=inside)


@triton.jit
def _tile(rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Group, (ROWS,) rows and (COLUMNS,) columns of this program."""
    tiles = tl.cdiv(rows, ROWS)
    first = tl.program_id(0) % tiles * ROWS
    return tl.program_id(0) // tiles, first + tl.arange(0, ROWS), tl.arange(0, COLUMNS)


@triton.jit
def _take_column(tile, column, k):
    return tl.sum(tl.where((column == k)[None, :], tile, 0.0), 1)


@triton.jit
def _divide(value, by):
    """Rounded to the nearest, also in float32, where ``/`` alone is less exact."""
    return value / by if value.dtype == tl.float64 else tl.div_rn(value, by)


@triton.jit
def _nearest(value, low, high, ROUNDER: tl.constexpr):
    """Half to even; the bounds are whole, so they may come first. NaN stays NaN."""
    value = tl.where(value < low, low, value)
    value = tl.where(value > high, high, value)
    return (value + ROUNDER) - ROUNDER
