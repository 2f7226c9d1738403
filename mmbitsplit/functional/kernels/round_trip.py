"""Divide, round, clamp: over whole tensors in one pass where there is a compiled loop."""

import torch
from torch import Tensor

# Below it calling a compiled loop costs more than the passes it saves.
LEAST_ELEMENTS = 1 << 14


def round_rows(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns ``clamp(round(x / scale), low, high)``; ties go to the even number, NaN stays NaN.

    Args:
        x: (R, L).
        scale, low, high: (C,) of the dtype of ``x``, R a multiple of C: row r takes the
            ``r % C``-th of each.
    """
    if _compiled(x):
        from mmbitsplit.functional.kernels.numba_loops import quantize_rows
        return quantize_rows(x, scale.contiguous(), low.contiguous(), high.contiguous())
    shaped = torch.div(x.unflatten(0, (-1, scale.numel())), scale.unsqueeze(1)).round_()
    return shaped.clamp_(low.unsqueeze(1), high.unsqueeze(1)).flatten(0, 1)


def round_trip_errors(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, norm: float = 2.0,
                      ) -> Tensor:
    """Returns sums over rows of ``|x - scale * clamp(round(x / scale), low, high)|^norm``.

    Args:
        x: (R, L).
        scale, low, high: (F, C) of the dtype of ``x``, R a multiple of C: candidate f gives row
            r its ``r % C``-th scale.
        norm: At least 1; there is a compiled loop for 2.

    Returns:
        (F, R) float64.
    """
    if norm == 2 and _compiled(x):
        from mmbitsplit.functional.kernels.numba_loops import round_trip_errors as compiled_errors
        return compiled_errors(x, scale.contiguous(), low.contiguous(), high.contiguous())
    return torch.stack([_errors(x, *candidate, norm) for candidate in zip(scale, low, high)])


def _errors(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, norm: float) -> Tensor:
    steps = scale.repeat(x.shape[0] // scale.numel()).unsqueeze(1)
    codes = round_rows(x, scale, low, high)
    errors = codes.mul_(steps).sub_(x)
    errors = errors.square_() if norm == 2 else errors.abs_().pow_(norm)
    return errors.sum(1, dtype=torch.float64)


def small_integers(x: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``x - middle``, which fits, as int8, and its sums over rows (R,) int64.

    Args:
        x: (R, L), holds integers.
        middle: (R,) integers, what is taken off each row.
    """
    if _compiled(x):
        from mmbitsplit.functional.kernels.numba_loops import small_integers as compiled_integers
        return compiled_integers(x, middle)
    small = (x - middle.to(x).unsqueeze(1)).to(torch.int8)
    return small, small.sum(1, dtype=torch.int64)


def _compiled(x: Tensor) -> bool:
    return (x.device.type == 'cpu' and x.numel() >= LEAST_ELEMENTS and x.is_contiguous()
            and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling())
