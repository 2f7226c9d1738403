"""AdaRound: learns layer by layer which weights are rounded up and which down."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from mmbitsplit.functional import round_weight, weight_scale
from mmbitsplit.methods.base import register_method
from mmbitsplit.methods.rounding import RoundingMethod, rounded_at
from mmbitsplit.methods.unit_learning import Learning, LossForm, Push, learn
from mmbitsplit.methods.unit_learning_optimizers import ParameterGroup
from mmbitsplit.methods.unit_learning_state import harden, soften
from mmbitsplit.methods.unit_problem import UnitCandidate, UnitProblem
from mmbitsplit.structures import Range, WeightSolution


@register_method
@dataclass(frozen=True)
class AdaRound(RoundingMethod):
    """Adaptive rounding (Nagel et al., ICML 2020): each weight up or down, learned layer by layer.

    From rounding at the scale of least squared error, Adam moves how far each weight is rounded
    up against the error of the layer's output, on what the quantized model gives the layer; a
    push to 0 or 1 grows until all are decided. Where everything reads the output through a ReLU,
    the error is that after it.

    Costs, where rounding costs nothing: ``iterations`` runs of every layer on ``batch_size``
    images, forward and backward.

    Differs from source: a scale for each output channel; inputs are quantized while roundings are
    learned, unless they stay float; other activations than ReLU are left out of the error; the
    choice is between the nearest code and the next nearest, so that weights beyond the range may
    come back into it; where learning is no better on held-out images, rounding stays.

    Args:
        iterations: Steps of Adam for each layer.
        batch_size: Images of a step, or crops of them; rows of a matrix.
        learning_rate: Of Adam.
        regularization: Weight of the push to 0 or 1, beside the squared error summed over
            channels.
        warm_start: Part of the iterations that have no push.
        loss: ``'published'``, or ``'scale_free'``: relative to the variance of the layer's
            outputs, with a regularization of 500 or so.
    """

    iterations: Annotated[int, Range(0)] = 10000
    batch_size: Annotated[int, Range(1)] = 32
    learning_rate: Annotated[float, Range(0, above=True)] = 1e-3
    regularization: Annotated[float, Range(0)] = 0.01
    warm_start: Annotated[float, Range(0, 1)] = 0.2
    loss: LossForm = 'published'

    needs = ('sums', 'unit_io')
    solves = 'unit'
    granularity = 'layer'

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """Scales of least squared error, one a tensor for inputs."""
        return {'weight': {'scale_search': 'mse'},
                'activation': {'mode': 'per_tensor', 'scale_search': 'mse'}}

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.round``: where learning starts."""
        scale = weight_scale(weight, num_bits, 'mse')
        return rounded_at(weight, round_weight(weight, scale, num_bits), scale)

    def solve_unit(self, problem: UnitProblem) -> Iterable[UnitCandidate]:
        """See ``Method.solve_unit``; a unit of several layers is learned at once."""
        # V of Eq. 22; the layers are rounded, and today's codes and their neighbours are the
        # paper's floor and ceiling.
        learned = learn(problem, Learning(
            groups=[ParameterGroup(parameters=soften(problem), learning_rate=self.learning_rate)],
            steps=self.iterations, batch_size=self.batch_size, loss=self.loss,
            push=Push(weight=self.regularization, warm_start=self.warm_start)))
        harden(problem)
        yield problem.candidate('learned rounding', learned.notes, learned.figures)
