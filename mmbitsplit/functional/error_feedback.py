"""Rounding with error feedback: what one column's rounding spoils, later columns make good.

Optimal-brain quantization in the Cholesky form (Frantar et al., GPTQ, 2022), applied to the
objective of the Bit-split paper: columns in falling order of the gram diagonal, target the
ridge solution of ``gram w = cross`` instead of the float weight, because inputs are quantized.
"""

import torch
from torch import Tensor

from mmbitsplit.functional.affine import code_range

BLOCK = 64


class FeedbackFactor:
    """What error feedback needs of one gram; computed once, used for many starting scales.

    Args:
        gram: (G, N, N) symmetric positive definite.
        cross: (G, M, N).

    Attributes:
        target: (G, M, N) float solution of ``gram w = cross``.
        order: (G, N) columns by falling diagonal.
        factor: (G, N, N) upper Cholesky factor of the inverse of the ordered gram.
    """

    def __init__(self, gram: Tensor, cross: Tensor):
        self.order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        ordered = torch.stack([one[order][:, order] for one, order in zip(gram, self.order)])
        lower = torch.linalg.cholesky(ordered)
        self.target = torch.cholesky_solve(
            _take(cross, self.order).transpose(1, 2), lower).transpose(1, 2)  # ordered columns
        inverse = torch.cholesky_inverse(lower)
        self.factor = torch.linalg.cholesky(inverse, upper=True)

    def round(self, scale: Tensor, num_bits: int) -> Tensor:
        """Rounds the target at the given scales, feeding errors forward.

        Args:
            scale: (G, M), real units a code step.
            num_bits: 2 to 8.

        Returns:
            (G, M, N) codes in the dtype of the gram, in the caller's column order.
        """
        smallest, largest = code_range(num_bits, signed=True, narrow_range=True)
        remaining = self.target.clone()
        codes = torch.empty_like(remaining)
        num_columns = remaining.shape[-1]
        for start in range(0, num_columns, BLOCK):
            stop = min(start + BLOCK, num_columns)
            inside = self.factor[:, start:stop, start:stop]
            block = remaining[..., start:stop].clone()
            errors = torch.empty_like(block)
            for k in range(stop - start):
                column = block[..., k]
                code = (column / scale).round_().clamp_(smallest, largest)
                error = (column - code * scale) / inside[:, k, k].unsqueeze(1)
                codes[..., start + k] = code
                errors[..., k] = error
                block[..., k + 1:] -= error.unsqueeze(2) * inside[:, k, k + 1:].unsqueeze(1)
            if stop < num_columns:
                remaining[..., stop:].baddbmm_(errors, self.factor[:, start:stop, stop:],
                                               alpha=-1)
        return torch.empty_like(codes).scatter_(
            2, self.order.unsqueeze(1).expand_as(codes), codes)


def _take(values: Tensor, order: Tensor) -> Tensor:
    """Reorders the last dimension of (G, M, N) by (G, N)."""
    return values.gather(2, order.unsqueeze(1).expand_as(values))
