"""Bit-split and stitching: integer weight codes that reproduce a layer's float output.

Source: Wang et al., Towards Accurate Post-training Network Quantization via Bit-Split and
Stitching, ICML 2020, Eq. 2 to 9 and Algorithm 1.
"""

import torch
from torch import Tensor

from mmbitsplit.functional.affine import code_range
from mmbitsplit.functional.bit_planes import split_bit_planes, stitch_bit_planes
from mmbitsplit.functional.descent import sweep_
from mmbitsplit.functional.error_feedback import FeedbackFactor
from mmbitsplit.functional.rounding import round_weight, weight_scale
from mmbitsplit.structures import WeightSolution
from mmbitsplit.structures.options import check_choice
from mmbitsplit.structures.spec import check_bits

INITS = ('error_feedback', 'mse')


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
        tolerance: A stage ends when less than this part of the elements moves in a round; 0
            goes on until nothing moves.

    Returns:
        Codes, scales, objective, number of sweeps, and the objective after each of them.

    Raises:
        ValueError: Bits outside 2 to 8, an unknown ``init``, shapes that do not fit, or a gram
            that is not positive definite.

    Source: Algorithm 1, lines 10 to 20. Differs from source: starting codes (``init``), polish,
        and a cap on the sweeps. ``init='mse', polish=False`` is the paper's method.
    """
    check_bits('num_bits', num_bits)
    check_choice('init', init, INITS)
    _check_shapes(gram, cross, weight)
    gram, cross = gram.contiguous(), cross.contiguous()
    weight = weight.to(gram.dtype)
    y_sq = torch.zeros_like(cross[..., 0]) if y_sq is None else y_sq.to(gram.dtype)
    start = _feedback_start if init == 'error_feedback' else _rounding_start
    codes, scale = start(gram, cross, weight, num_bits)
    state = _Descent(gram, cross, codes, scale)
    history = [float(state.objective(y_sq).sum())]
    sweeps, few = 0, tolerance * codes.numel()
    planes = split_bit_planes(state.codes, num_bits)  # (b-1, G, M, N)
    for _ in range(min(max_sweeps, 1) if polish else max_sweeps):
        state.fit_scale_()
        moved = 0
        for m in range(num_bits - 1):
            moved += state.sweep_(planes[m], step=2.0 ** m, low=-1, high=1)
        sweeps += num_bits - 1
        history.append(float(state.objective(y_sq).sum()))
        if moved <= few * (num_bits - 1):
            break
    state.codes = stitch_bit_planes(planes)
    if polish:
        smallest, largest = code_range(num_bits, signed=True, narrow_range=True)
        for _ in range(max_sweeps):
            state.fit_scale_()
            moved = state.sweep_(state.codes, step=1.0, low=smallest, high=largest)
            sweeps += 1
            history.append(float(state.objective(y_sq).sum()))
            if moved <= few:
                break
    state.fit_scale_()
    objective = state.objective(y_sq)
    return WeightSolution(state.codes.to(torch.int8), state.scale, objective, sweeps,
                          (*history, float(objective.sum())))


class _Descent:
    """Codes, scale and ``codes @ gram``, kept consistent while elements move."""

    def __init__(self, gram: Tensor, cross: Tensor, codes: Tensor, scale: Tensor):
        self.gram, self.cross, self.codes, self.scale = gram, cross, codes, scale
        self.product = codes @ gram  # (G, M, N)

    def sweep_(self, values: Tensor, *, step: float, low: float, high: float) -> int:
        """One pass over ``values``, a bit plane or the codes themselves."""
        tracked = values is self.codes
        before = None if tracked else values.clone()
        moved = sweep_(values, self.product, self.cross / self.scale.unsqueeze(-1), self.gram,
                       step=step, low=low, high=high)
        if moved and not tracked:
            self.codes = self.codes + (values - before) * step
        return moved

    def fit_scale_(self) -> None:
        """Closed-form scale (Eq. 4); a row without codes or with a scale <= 0 keeps its own."""
        correlation = (self.codes * self.cross).sum(-1)
        energy = (self.codes * self.product).sum(-1)
        usable = (energy > 0) & (correlation > 0)
        self.scale = torch.where(usable, correlation / torch.where(usable, energy, 1.0),
                                 self.scale)

    def objective(self, y_sq: Tensor) -> Tensor:
        """(G, M) sum of squared output errors (Eq. 2)."""
        return (y_sq - 2 * self.scale * (self.codes * self.cross).sum(-1)
                + self.scale.square() * (self.codes * self.product).sum(-1))


def _rounding_start(gram: Tensor, cross: Tensor, weight: Tensor, num_bits: int):
    """Codes by plain rounding; Algorithm 1, lines 11 and 12, at the scale of least error."""
    scale = weight_scale(weight, num_bits, 'mse')
    return round_weight(weight, scale, num_bits), scale


def _feedback_start(gram: Tensor, cross: Tensor, weight: Tensor, num_bits: int):
    """Codes by error feedback at the scale of least rounding error of the float solution."""
    try:
        factor = FeedbackFactor(gram, cross)
    except torch.linalg.LinAlgError as error:
        raise ValueError('gram is not positive definite, so error feedback cannot start; add a '
                         "ridge with functional.add_ridge, or use init='mse'.") from error
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
