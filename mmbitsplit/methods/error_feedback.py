"""Error feedback alone: GPTQ."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mmbitsplit.functional import (
    add_ridge,
    feedback_factor,
    quadratic_objective,
    solve_bitsplit_rows,
    weight_scale,
)
from mmbitsplit.methods.base import Method, register_method
from mmbitsplit.structures import LayerStatistics, Range, RowStatistics, WeightSolution
from mmbitsplit.structures.spec import WeightSearch


@register_method
@dataclass(frozen=True)
class ErrorFeedback(Method):
    """GPTQ (Frantar et al., 2022): columns are rounded one by one, later ones make good the error.

    Differs from source: columns in falling order of the gram diagonal (its option ``act_order``),
    symmetric codes, and the grid by squared error (its option ``mse``) where it says ``'mse'``.
    Layers of more than 8192 inputs go part by part, see ``functional.solve_bitsplit_rows``, and
    have their scale fitted once.

    Args:
        target: ``'weight'``, what the float weight gives on the inputs of the quantized model, as
            published; or ``'output'``, the float model's output.
        scale_search: Of the grid, fixed beforehand.
        ridge: Multiple of the mean gram diagonal added to it.
        bias_correction: Fit the bias together with the weights.
        guard: Take plain rounding where it is better on held-out positions.
    """

    target: Literal['weight', 'output'] = 'weight'
    scale_search: WeightSearch = 'mse'
    ridge: Annotated[float, Range(0, above=True)] = 0.01
    bias_correction: bool = False
    guard: bool = False

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """It says nothing of inputs: one scale a tensor, by squared error."""
        return {'weight': {'scale_search': self.scale_search},
                'activation': {'mode': 'per_tensor', 'scale_search': 'mse'}}

    def solve(self, statistics: LayerStatistics, weight: Tensor, num_bits: int,
              ) -> WeightSolution:
        """See ``Method.solve``."""
        weight = weight.to(statistics.gram)
        damped = add_ridge(statistics, weight, self.ridge)
        cross = damped.cross if self.target == 'output' else weight @ damped.gram
        scale = weight_scale(weight, num_bits, self.scale_search)
        codes = feedback_factor(damped.gram, cross).round(scale, num_bits)
        objective = quadratic_objective(statistics.gram, statistics.cross, statistics.y_sq,
                                        codes * scale.unsqueeze(-1))
        return WeightSolution(codes.to(torch.int8), scale, objective)

    def solve_rows(self, rows: RowStatistics, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.solve_rows``."""
        if self.target == 'weight':
            y = weight.to(rows.x) @ rows.x
            rows = replace(rows, y=y, y_sum=y.sum(-1))
        return solve_bitsplit_rows(rows, weight, num_bits, ridge=self.ridge,
                                   init='error_feedback', polish=False, max_rounds=0)
