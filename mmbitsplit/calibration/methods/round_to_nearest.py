"""Plain rounding as a method: the baseline, and what the guard falls back to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmbitsplit.calibration.methods.base import register_method
from mmbitsplit.functional import quadratic_objective, round_weight, weight_scale
from mmbitsplit.structures import LayerStatistics, RowStatistics, WeightSolution
from mmbitsplit.structures.options import check_choice
from mmbitsplit.structures.spec import SCALE_SEARCHES


@register_method
@dataclass(frozen=True)
class RoundToNearest:
    """Rounds each weight to the nearest code; looks at no image for that.

    Args:
        scale_search: ``'mse'`` or ``'minmax'``.
        bias_correction: Correct the bias for the mean error of the outputs.
        guard: Has nothing to fall back to; kept off.
    """

    scale_search: str = 'mse'
    bias_correction: bool = False
    guard: bool = False

    def __post_init__(self):
        check_choice('scale_search', self.scale_search, SCALE_SEARCHES)
        if self.guard:
            raise ValueError('guard=True: plain rounding is what the guard falls back to.')

    def solve(self, statistics: LayerStatistics, weight: Tensor, num_bits: int,
              ) -> WeightSolution:
        """See ``Method.solve``."""
        codes, scale = self._round(weight.to(statistics.gram), num_bits)
        objective = quadratic_objective(statistics.gram, statistics.cross, statistics.y_sq,
                                        codes * scale.unsqueeze(-1))
        return WeightSolution(codes.to(torch.int8), scale, objective)

    def solve_rows(self, rows: RowStatistics, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.solve_rows``."""
        codes, scale = self._round(weight.to(rows.x), num_bits)
        error = torch.baddbmm(rows.y, codes * scale.unsqueeze(-1), rows.x, alpha=-1)
        if rows.centred:
            error -= error.mean(-1, keepdim=True)
        return WeightSolution(codes.to(torch.int8), scale,
                              error.square().sum(-1, dtype=torch.float64))

    def _round(self, weight: Tensor, num_bits: int) -> tuple[Tensor, Tensor]:
        scale = weight_scale(weight, num_bits, self.scale_search)
        return round_weight(weight, scale, num_bits), scale

    def quick(self) -> 'RoundToNearest':
        """Itself: nothing is cheaper."""
        return self
