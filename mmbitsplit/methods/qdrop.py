"""QDrop: roundings and input scales of a block learned at once, quantization dropped at random."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from mmbitsplit.functional import round_weight, weight_scale
from mmbitsplit.functional.quantizers.random_drop import RandomDrop
from mmbitsplit.methods.base import Granularity, register_method
from mmbitsplit.methods.rounding import RoundingMethod, rounded_at
from mmbitsplit.methods.unit_learning import Learning, LossForm, Push, learn
from mmbitsplit.methods.unit_learning_activations import dropped_quantization, learn_scales
from mmbitsplit.methods.unit_learning_draws import Draw
from mmbitsplit.methods.unit_learning_optimizers import ParameterGroup
from mmbitsplit.methods.unit_learning_state import harden, soften
from mmbitsplit.methods.unit_problem import UnitCandidate, UnitProblem
from mmbitsplit.structures import Range, WeightSolution

NORM = 2.4  # of the scale searches


@register_method
@dataclass(frozen=True)
class QDrop(RoundingMethod):
    """QDrop (Wei et al., ICLR 2022): blocks learned with quantization dropped at random.

    From rounding, Adam learns for each block which weights are rounded up and which down, as in
    BRECQ, and the scales of inputs as in LSQ, in one stage and against the output of the float
    block on float inputs. In each step every element of the block's input comes from the quantized
    or from the float model, and every element that is quantized inside is quantized or is not, by
    chance: flatter minima that hold on other images, most at 4 bits and below.

    Costs, where rounding costs nothing: ``iterations`` runs of every block on ``batch_size``
    images, forward and backward.

    Differs from source: weights are symmetric and choose between the nearest code and the next
    nearest, so that weights beyond the range may come back into it; what enters layers is
    quantized, not what leaves them, so a skip connection is not, unless the placement says so; the
    unit's input and the quantizer of its first layer are dropped each by itself; scales are
    searched layer by layer on what the quantized model gives them, zero points in one dimension;
    where everything reads the block's output through a ReLU, the error is that after it; where
    learning is no better on held-out images, rounding stays. Which layers have 8 bits is
    ``first_last``, not the method's.

    Args:
        iterations: Steps for each block.
        batch_size: Images of a step, or crops of them; rows of a matrix.
        drop_probability: That an element is left unquantized. 0 quantizes everything: BRECQ with
            quantized inputs.
        learning_rate: Of the roundings.
        scale_rate: Of the input scales, in real units; falls to 0 along a cosine.
        regularization: Weight of the push to 0 or 1, beside the squared error summed over
            channels; 0.1 for MobileNetV2 and 0.2 for MnasNet in the source.
        warm_start: Part of the iterations that have no push.
        granularity: What is learned together: ``'layer'``, ``'block'``, ``'stage'``, ``'net'``;
            see ``Method``.
        merge: How many neighbouring blocks are learned together where one is called right after
            the other. MRECG (Ma et al., CVPR 2023) joins those that differ most in capacity, and
            gains most on networks of depthwise blocks; here all are joined alike.
        loss: ``'published'``, or ``'scale_free'``: relative to the variance of the block's
            outputs, with a regularization of 500 or so.
    """

    iterations: Annotated[int, Range(0)] = 20000
    batch_size: Annotated[int, Range(1)] = 32
    drop_probability: Annotated[float, Range(0, 1)] = 0.5
    learning_rate: Annotated[float, Range(0, above=True)] = 1e-3
    scale_rate: Annotated[float, Range(0, above=True)] = 4e-5
    regularization: Annotated[float, Range(0)] = 0.01
    warm_start: Annotated[float, Range(0, 1)] = 0.2
    granularity: Granularity = 'block'
    merge: Annotated[int, Range(1)] = 1
    loss: LossForm = 'published'

    needs = ('sums', 'unit_io')
    solves = 'unit'

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """One scale a tensor of least 2.4-norm, two-sided inputs with a zero point."""
        return {'activation': {'mode': 'per_tensor', 'symmetry': 'asymmetric',
                               'scale_search': 'lp', 'norm': NORM}}

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.round``: where learning starts."""
        scale = weight_scale(weight, num_bits, 'lp', norm=NORM)
        return rounded_at(weight, round_weight(weight, scale, num_bits), scale)

    def solve_unit(self, problem: UnitProblem) -> Iterable[UnitCandidate]:
        """See ``Method.solve_unit``."""
        groups = [
            ParameterGroup(parameters=soften(problem), learning_rate=self.learning_rate),
            ParameterGroup(parameters=learn_scales(problem, gradient_factor=True),
                           learning_rate=self.scale_rate,
                           schedule='cosine')]
        learned = learn(problem, Learning(
            groups=groups, steps=self.iterations, batch_size=self.batch_size, loss=self.loss,
            push=Push(weight=self.regularization, warm_start=self.warm_start),
            feed=self._mixed_input, inside=lambda generator: dropped_quantization(
                problem, self.drop_probability, generator)))
        harden(problem)
        yield problem.candidate('learned rounding', learned.notes, learned.figures)

    def _mixed_input(self, draw: Draw, generator: torch.Generator) -> Tensor:
        """Elements of the quantized model's input, some of them of the float model's."""
        assert draw.float_input is not None
        return RandomDrop(self.drop_probability, generator)(
            draw.quantized_input, lambda: draw.float_input)
