"""Bit-split and stitching: integer weight codes that reproduce a layer's float output.

Source: Wang et al., Towards Accurate Post-training Network Quantization via Bit-Split and
Stitching, ICML 2020, Eq. 2 to 9 and Algorithm 1.
"""

from typing import Literal

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.affine import code_range
from mmbitsplit.functional.quantizers.bit_planes import split_bit_planes, stitch_bit_planes
from mmbitsplit.functional.quantizers.rounding import round_weight, weight_scale
from mmbitsplit.functional.solvers.coordinate_descent import sweep_
from mmbitsplit.functional.solvers.error_feedback import feedback_factor
from mmbitsplit.structures import WeightSolution
from mmbitsplit.structures.options import check_value
from mmbitsplit.structures.spec import check_bits

Init = Literal['error_feedback', 'mse']


def solve_bitsplit(gram: Tensor, cross: Tensor, weight: Tensor, num_bits: int, *,
                   y_sq: Tensor | None = None, init: str = 'error_feedback',
                   polish: bool = True, max_sweeps: int = 20, tolerance: float = 1e-3,
                   ) -> WeightSolution:
    """Minimises ``y_sq - 2 a q.cross + a^2 q^T gram q`` over codes q and scale a, each channel.

    Args:
        gram: (G, N, N) sum of x x^T; positive definite for ``init='error_feedback'``
            (``functional.add_ridge`` makes it so).
        cross: (G, M, N) sum of y x^T.
        weight: (G, M, N) float weight on the scale of x.
        num_bits: b, 2 to 8; codes lie in [-(2^(b-1)-1), 2^(b-1)-1].
        y_sq: (G, M) sum of y^2, a constant of the objective; zero when not given.
        init: ``'mse'`` rounds at the scale of least rounding error; ``'error_feedback'``
            rounds column by column and lets later columns make good what earlier ones spoil.
        polish: After stitching, descend on whole codes until nothing moves.
        max_sweeps: Most rounds of bit optimization (each a sweep a plane) without polish; most
            rounds of polish with it, after one round of bit optimization (more of them end at
            the same objective, later).
        tolerance: A row is done with a stage when no more than this part of its elements moved
            in a round; 0 goes on until nothing moves.

    Returns:
        Codes, scales, objective, number of sweeps, and the objective before and after each fit of
        the scales.

    Raises:
        ValueError: Bits outside 2 to 8, an unknown ``init``, shapes that do not fit, or a gram
            that is not positive definite.

    Source: Algorithm 1, lines 10 to 20. Differs from source: starting codes (``init``), polish,
        and a cap on the sweeps. ``init='mse', polish=False`` is the paper's method.
    """
    check_bits('num_bits', num_bits)
    check_value('init', init, Init)
    _check_shapes(gram, cross, weight)
    gram, cross = gram.contiguous(), cross.contiguous()
    weight = weight.to(gram.dtype)
    y_sq = torch.zeros_like(cross[..., 0]) if y_sq is None else y_sq.to(gram.dtype)
    start = _feedback_start if init == 'error_feedback' else _rounding_start
    codes, scale = start(gram, cross, weight, num_bits)
    state = _Descent(gram, cross, y_sq, codes, scale)
    few, planes = tolerance * codes.shape[-1], split_bit_planes(codes, num_bits)  # (b-1, G, M, N)
    for _ in range(min(max_sweeps, 1) if polish else max_sweeps):
        moved = torch.zeros_like(state.closed, dtype=torch.int64)
        for m in range(num_bits - 1):
            moved = moved + state.sweep_(planes[m], step=2.0 ** m, low=-1, high=1)
        state.take_(stitch_bit_planes(planes), moved <= few * (num_bits - 1))
        if state.closed.all():
            break
    if polish:
        smallest, largest = code_range(num_bits, signed=True, narrow_range=True)
        state.reopen_()
        for _ in range(max_sweeps):
            moved = state.sweep_(state.codes, step=1.0, low=smallest, high=largest)
            state.take_(state.codes, moved <= few)
            if state.closed.all():
                break
    return WeightSolution(state.codes.to(torch.int8), state.scale, state.objective,
                          num_sweeps=state.num_sweeps, history=tuple(state.history))


class _Descent:
    """Codes, scale and ``codes @ gram``, kept consistent while elements move.

    Rows are independent: each is closed when it has come to rest, whatever the others do, so
    that a row's solution is the same in whatever company it is solved.
    """

    def __init__(self, gram: Tensor, cross: Tensor, y_sq: Tensor, codes: Tensor, scale: Tensor):
        self.gram, self.cross, self.y_sq, self.scale = gram, cross, y_sq, scale
        self.product = codes @ gram  # (G, M, N)
        self.num_sweeps = 0
        self.history: list[float] = []
        self.reopen_()
        self.take_(codes, self.closed)

    def reopen_(self) -> None:
        """Opens all rows, for the next stage."""
        self.closed = torch.zeros_like(self.scale, dtype=torch.bool)

    def sweep_(self, values: Tensor, *, step: float, low: float, high: float) -> Tensor:
        """One pass over ``values``, a bit plane or the codes themselves; moves a row, (G, M)."""
        self.num_sweeps += 1
        return sweep_(values, self.product, self.target, self.gram, step=step, low=low,
                      high=high, closed=self.closed)

    def take_(self, codes: Tensor, at_rest: Tensor) -> None:
        """Ends a round: fits the scales to the codes (Eq. 4) and closes rows at rest.

        A row without codes, or whose best scale would not be positive, keeps its own.
        """
        self.codes = codes
        correlation = _dot(codes, self.cross)
        energy = _dot(codes, self.product)
        before = self._objective(correlation, energy)
        usable = (energy > 0) & (correlation > 0)
        self.scale = torch.where(usable, correlation / torch.where(usable, energy, 1.0),
                                 self.scale.double()).to(self.scale)
        self.objective = self._objective(correlation, energy)
        self.history += [float(before.sum()), float(self.objective.sum())]
        self.target = self.cross / self.scale.unsqueeze(-1)
        self.closed = self.closed | at_rest

    def _objective(self, correlation: Tensor, energy: Tensor) -> Tensor:
        """(G, M) sum of squared output errors (Eq. 2)."""
        scale = self.scale.double()
        return self.y_sq.double() - 2 * scale * correlation + scale.square() * energy


def _dot(codes: Tensor, values: Tensor) -> Tensor:
    """(G, M) inner products of rows, summed in float64."""
    return (codes * values).sum(-1, dtype=torch.float64)


def _rounding_start(gram: Tensor, cross: Tensor, weight: Tensor, num_bits: int,
                    ) -> tuple[Tensor, Tensor]:
    """Codes by plain rounding; Algorithm 1, lines 11 and 12, at the scale of least error."""
    scale = weight_scale(weight, num_bits, 'mse')
    return round_weight(weight, scale, num_bits), scale


def _feedback_start(gram: Tensor, cross: Tensor, weight: Tensor, num_bits: int,
                    ) -> tuple[Tensor, Tensor]:
    """Codes by error feedback at the scale of least rounding error of the float solution."""
    factor = feedback_factor(gram, cross)
    scale = weight_scale(factor.target, num_bits, 'mse')
    return factor.round(scale, num_bits), scale


def _check_shapes(gram: Tensor, cross: Tensor, weight: Tensor) -> None:
    groups, num_inputs = gram.shape[0], gram.shape[-1]
    if gram.dim() != 3 or gram.shape[1] != num_inputs or cross.dim() != 3 \
            or cross.shape[0] != groups or cross.shape[2] != num_inputs \
            or weight.shape != cross.shape:
        raise ValueError('Shapes do not fit: gram must be (G, N, N), cross and weight (G, M, N); '
                         f'got {tuple(gram.shape)}, {tuple(cross.shape)} and '
                         f'{tuple(weight.shape)}.')
