"""Rounding with error feedback: what one column's rounding spoils, later columns make good.

Optimal-brain quantization (Frantar et al., GPTQ, 2022), applied to the objective of the
Bit-split paper: columns in falling order of the gram diagonal, target the ridge solution of
``gram w = cross`` instead of the float weight, because inputs are quantized. Computed as what it
is geometrically, Babai's nearest plane: with the columns read backwards and ``gram = L L^T``, the
best value of a column, given those already rounded, follows from its row of L. One factorization,
and no inverse of the gram.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.affine import code_range
from mmbitsplit.functional.solvers.coordinate_descent import has_triton

BLOCK = 64


class FeedbackFactor:
    """What error feedback needs of one gram; computed once, used for many starting scales.

    Args:
        gram: (G, N, N) symmetric positive definite.
        cross: (G, M, N).

    Attributes:
        order: (G, N) columns by rising diagonal; they are rounded from the last to the first.
        lower: (G, N, N) Cholesky factor of the ordered gram.
        target: (G, M, N) float solution of ``gram w = cross``, columns ordered.

    Raises:
        torch.linalg.LinAlgError: The gram is not positive definite.
    """

    def __init__(self, gram: Tensor, cross: Tensor):
        falling = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        self.order = falling.flip(1)
        with one_thread():
            self.lower = torch.linalg.cholesky(_reorder(gram, self.order))
            self.target = torch.cholesky_solve(_take(cross, self.order).mT, self.lower).mT

    def round(self, scale: Tensor, num_bits: int) -> Tensor:
        """Rounds the target at the given scales, feeding errors forward.

        Args:
            scale: (G, M), real units a code step.
            num_bits: 2 to 8.

        Returns:
            (G, M, N) codes in the dtype of the gram, in the caller's column order.
        """
        smallest, largest = code_range(num_bits, signed=True, narrow_range=True)
        codes = torch.empty_like(self.target, memory_format=torch.contiguous_format)
        scale = scale.contiguous()
        pull = torch.zeros_like(codes)  # sum over rounded columns j of error_j L_jk
        for start in reversed(range(0, codes.shape[-1], BLOCK)):
            block = slice(start, min(start + BLOCK, codes.shape[-1]))
            inside = self.lower[:, block, block]
            # The best values of the block, all its columns open, and its own feedback factor:
            # columns flipped, because loops run forwards.
            factor = _inverse(inside).flip(1, 2).contiguous()
            wanted = (self.target[..., block]
                      + torch.linalg.solve_triangular(inside, pull[..., block], upper=False,
                                                      left=False))
            wanted = wanted.flip(2).contiguous()
            rounded = torch.empty_like(wanted)
            feedback_loop(wanted, rounded, scale, factor, smallest, largest)
            codes[..., block] = rounded.flip(2)
            if start:
                errors = self.target[..., block] - codes[..., block] * scale.unsqueeze(-1)
                pull[..., :start].baddbmm_(errors, self.lower[:, block, :start])
        return torch.empty_like(codes).scatter_(
            2, self.order.unsqueeze(1).expand_as(codes), codes)


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute on one CPU thread: MKL factors a matrix otherwise with other last bits for
    another number of threads, and in float32 some code of a thousand follows them."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)


def feedback_factor(gram: Tensor, cross: Tensor) -> FeedbackFactor:
    """Returns ``FeedbackFactor(gram, cross)``.

    Raises:
        ValueError: The gram is not positive definite; says what to do.
    """
    try:
        return FeedbackFactor(gram, cross)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # not in its stubs
        raise ValueError('gram is not positive definite, so error feedback cannot start; add a '
                         "ridge with functional.add_ridge, or use init='mse'.") from error


def feedback_loop(block: Tensor, codes: Tensor, scale: Tensor, factor: Tensor, low: float,
                  high: float) -> None:
    """The sequential part of a block: compiled where there is a kernel, else plain torch.

    Args:
        block: (G, M, B) what is left to round, changed in place.
        codes: (G, M, B), written.
        scale: (G, M).
        factor: (G, B, B) upper triangular: the upper Cholesky factor of the inverse of the
            block's gram, rows scaled in any way.
        low, high: Range of the codes.
    """
    if block.device.type == 'cpu':
        from mmbitsplit.functional.kernels.numba_loops import feedback_block
        feedback_block(block, codes, scale, factor, low, high)
    elif has_triton(block):
        from mmbitsplit.functional.kernels.triton_loops import feedback_block
        feedback_block(block, codes, scale, factor, low, high)
    else:
        feedback_loop_torch(block, codes, scale, factor, low, high)


def feedback_loop_torch(block: Tensor, codes: Tensor, scale: Tensor, factor: Tensor, low: float,
                        high: float) -> None:
    """The same in plain torch: one column after another, all output channels at once."""
    for k in range(block.shape[-1]):
        column = block[..., k]
        codes[..., k] = (column / scale).round_().clamp_(low, high)
        error = (column - codes[..., k] * scale) / factor[:, k, k].unsqueeze(1)
        block[..., k + 1:] -= error.unsqueeze(2) * factor[:, k, k + 1:].unsqueeze(1)


def _inverse(lower: Tensor) -> Tensor:
    """Inverse of (G, B, B) lower triangular matrices."""
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)


def _reorder(gram: Tensor, order: Tensor) -> Tensor:
    """Rows and columns of (G, N, N) in the order (G, N)."""
    # Half the time of indexing both ways, and no copy of the only group there usually is.
    ordered = [one.index_select(0, columns).index_select(1, columns)
               for one, columns in zip(gram, order)]
    return ordered[0].unsqueeze(0) if len(ordered) == 1 else torch.stack(ordered)


def _take(values: Tensor, order: Tensor) -> Tensor:
    """Reorders the last dimension of (G, M, N) by (G, N)."""
    return values.gather(2, order.unsqueeze(1).expand_as(values))
