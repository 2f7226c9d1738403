"""What methods share that round each weight by itself, whatever the layer's inputs are."""

from dataclasses import replace

import torch
from torch import Tensor

from mmbitsplit.functional import quadratic_objective
from mmbitsplit.methods.base import Method
from mmbitsplit.structures import LayerStatistics, RowStatistics, WeightSolution


class RoundingMethod(Method):
    """Has ``round`` and nothing else: statistics only tell the objective."""

    needs = ()

    def solve(self, statistics: LayerStatistics, weight: Tensor, num_bits: int,
              ) -> WeightSolution:
        """See ``Method.solve``."""
        rounded = self.round(weight.to(statistics.gram), num_bits)
        return replace(rounded, objective=quadratic_objective(
            statistics.gram, statistics.cross, statistics.y_sq, rounded.weight))

    def solve_rows(self, rows: RowStatistics, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.solve_rows``."""
        rounded = self.round(weight.to(rows.x), num_bits)
        error = torch.baddbmm(rows.y, rounded.weight, rows.x, alpha=-1)
        if rows.centred:
            error -= error.mean(-1, keepdim=True)
        return replace(rounded, objective=error.square().sum(-1, dtype=torch.float64))


def rounded_at(weight: Tensor, codes: Tensor, scale: Tensor, offset: Tensor | None = None,
               num_bits: Tensor | None = None) -> WeightSolution:
    """Codes of a weight as a solution without objective."""
    return WeightSolution(codes.to(torch.int8), scale.to(weight), torch.zeros_like(scale),
                          offset=None if offset is None else offset.to(weight), num_bits=num_bits)
