"""Bit-split and stitching as a method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from torch import Tensor

from mmbitsplit.functional import (
    add_ridge,
    default_ridge,
    solve_bitsplit,
    solve_bitsplit_rows,
)
from mmbitsplit.functional.solvers.bitsplit import Init
from mmbitsplit.methods.base import Method, register_method
from mmbitsplit.structures import (
    LayerStatistics,
    QuantSpec,
    Range,
    RowStatistics,
    WeightSolution,
)
from mmbitsplit.structures.given_plan import AS_REQUESTED

FEW_BITS = 4  # of inputs: with more, the solver's codes are as good (docs/measured.md)
LEARNING = dict(type='OutputTuning', codes=True, learning_rate=2e-3, mirrored='auto',
                if_possible=True)
ROUNDS = {'best': 40.0}  # that of the default is the stage's own


@register_method
@dataclass(frozen=True)
class BitSplit(Method):
    """Bit-split (Wang et al., ICML 2020), by default with warm start and polish.

    The method as published is ``PublishedBitSplit``.

    Args:
        init: Where the descent starts: ``'mse'`` rounds at the scale of least rounding error;
            ``'error_feedback'`` rounds column by column, later ones making good what earlier
            ones spoil.
        polish: Descend on whole codes after stitching.
        max_sweeps: Most rounds of polish; without polish, of bit optimization.
        tolerance: A channel is done when no more than this part of its codes moved in a round;
            0 goes on until nothing moves. Layers of more than 8192 inputs have a rule of their
            own (``functional.solve_bitsplit_rows``).
        ridge: Pull toward the float weight, a multiple of the mean gram diagonal; ``None``
            takes it from the number of positions (``functional.default_ridge``).
        bias_correction: Fit the bias together with the weights.
        guard: Take plain rounding where it is better on held-out positions.
        effort: How long a user waits. ``'fast'``: the solver alone. ``'default'``: where inputs
            have few bits, codes, scales and biases of all layers are learned together afterwards,
            from the solver's and against the float model's outputs (``OutputTuning``), in at most
            about ten times the time. ``'best'``: that at any width, and five times as long. A
            request's own ``tuning`` takes the place of this.
    """

    init: Init = 'error_feedback'
    polish: bool = True
    max_sweeps: Annotated[int, Range(0)] = 20
    tolerance: Annotated[float, Range(0, 1)] = 1e-3
    ridge: Annotated[float, Range(0)] | None = None
    bias_correction: bool = True
    guard: bool = True
    effort: Literal['fast', 'default', 'best'] = 'default'

    def tuning(self, spec: QuantSpec) -> Sequence[Mapping[str, Any]]:
        """See ``Method.tuning``."""
        if self.effort == 'fast' or (self.effort == 'default' and not _few_bits(spec)):
            return ()
        return [dict(LEARNING, rounds=ROUNDS.get(self.effort))]

    def solve(self, statistics: LayerStatistics, weight: Tensor, num_bits: int,
              ) -> WeightSolution:
        """See ``Method.solve``."""
        statistics = add_ridge(statistics, weight, self.ridge)
        return solve_bitsplit(statistics.gram, statistics.cross, weight, num_bits,
                              y_sq=statistics.y_sq, init=self.init, polish=self.polish,
                              max_sweeps=self.max_sweeps, tolerance=self.tolerance)

    def solve_rows(self, rows: RowStatistics, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.solve_rows``."""
        ridge = self.ridge
        if ridge is None:
            ridge = default_ridge(weight.shape[-1], rows.count)
        return solve_bitsplit_rows(rows, weight, num_bits, ridge=ridge, init=self.init,
                                   polish=self.polish, max_rounds=self.max_sweeps)

    def quick(self) -> 'BitSplit':
        """Two rounds from plain rounding: enough to compare input scales by.

        A start by error feedback ranks them alike (CIFAR ResNet-20, three seeds: W4A8 80.8 and
        80.9 %, W2A4 77.5 and 77.6 %) and factors a gram for each.
        """
        return replace(self, init='mse', max_sweeps=2)


def _few_bits(spec: QuantSpec) -> bool:
    """Whether inputs of inner layers have, or may be given, so few bits that learning pays."""
    widths: list[Any] = [spec.activation.num_bits]
    if spec.budget is not None and spec.budget.activation_widths is not None \
            and spec.activation.num_bits is not None:
        widths = [own.activation for own in spec.budget.choices()]
    elif spec.plan is not None:
        widths = [spec.activation.num_bits if row.input_bits == AS_REQUESTED else row.input_bits
                  for row in spec.plan.layers]
    return any(isinstance(bits, int) and bits <= FEW_BITS for bits in widths)
