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
        target: (G, M, N) float solution of ``gram w = cross``, columns ordered.
        order: (G, N) columns by falling diagonal.
        factor: (G, N, N) upper Cholesky factor R of the inverse of the ordered gram.
    """

    def __init__(self, gram: Tensor, cross: Tensor):
        self.order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        # The upper Cholesky factor R of the inverse, inverse = R^T R, is the inverse of the
        # factor of the gram read backwards: one factorization, and no inverse of the gram.
        backward = torch.stack([one[order][:, order]
                                for one, order in zip(gram, self.order.flip(1))])
        lower = torch.linalg.cholesky(backward)
        del backward  # one gram of a large layer is a gigabyte
        identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
        del lower, identity
        self.factor = inverse.flip(1, 2)
        ordered = _take(cross, self.order)
        self.target = (ordered @ self.factor.transpose(1, 2)) @ self.factor

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
            inside = self.factor[:, start:stop, start:stop].contiguous()
            block = remaining[..., start:stop].contiguous()
            errors, rounded = torch.empty_like(block), torch.empty_like(block)
            feedback_loop(block, errors, rounded, scale.contiguous(), inside, smallest, largest)
            codes[..., start:stop] = rounded
            if stop < num_columns:
                remaining[..., stop:].baddbmm_(errors, self.factor[:, start:stop, stop:],
                                               alpha=-1)
        return torch.empty_like(codes).scatter_(
            2, self.order.unsqueeze(1).expand_as(codes), codes)


def feedback_loop(block: Tensor, errors: Tensor, codes: Tensor, scale: Tensor, factor: Tensor,
                  low: float, high: float) -> None:
    """The sequential part of a block: compiled on the CPU, plain torch elsewhere.

    Args:
        block: (G, M, B) what is left to round, changed in place.
        errors, codes: (G, M, B), written.
        scale: (G, M).
        factor: (G, B, B) upper triangular.
        low, high: Range of the codes.
    """
    if block.device.type == 'cpu':
        from mmbitsplit.functional.compiled import feedback_block, run_compiled
        run_compiled(feedback_block, block, errors, codes, scale, factor, float(low),
                     float(high))
    else:
        feedback_loop_torch(block, errors, codes, scale, factor, low, high)


def feedback_loop_torch(block: Tensor, errors: Tensor, codes: Tensor, scale: Tensor,
                        factor: Tensor, low: float, high: float) -> None:
    """The same in plain torch: one column after another, all output channels at once."""
    for k in range(block.shape[-1]):
        column = block[..., k]
        code = (column / scale).round_().clamp_(low, high)
        error = (column - code * scale) / factor[:, k, k].unsqueeze(1)
        codes[..., k], errors[..., k] = code, error
        block[..., k + 1:] -= error.unsqueeze(2) * factor[:, k, k + 1:].unsqueeze(1)


def _take(values: Tensor, order: Tensor) -> Tensor:
    """Reorders the last dimension of (G, M, N) by (G, N)."""
    return values.gather(2, order.unsqueeze(1).expand_as(values))
