"""BRECQ: learns the roundings of a block together, then the scales of its activations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mmbitsplit.functional import round_weight, weight_scale
from mmbitsplit.methods.base import Granularity, Need, register_method
from mmbitsplit.methods.rounding import RoundingMethod, rounded_at
from mmbitsplit.methods.unit_learning import Learned, Learning, LossForm, Push, learn
from mmbitsplit.methods.unit_learning_activations import (
    dropped_quantization,
    learn_scales,
    own_scales,
)
from mmbitsplit.methods.unit_learning_draws import Draw
from mmbitsplit.methods.unit_learning_optimizers import ParameterGroup
from mmbitsplit.methods.unit_learning_state import harden, soften
from mmbitsplit.methods.unit_problem import UnitCandidate, UnitProblem
from mmbitsplit.structures import Range, WeightSolution

NORM = 2.4  # of the errors that scales are searched and learned by


@register_method
@dataclass(frozen=True)
class BRECQ(RoundingMethod):
    """Block reconstruction (Li et al., ICLR 2021): roundings of a block learned together.

    From rounding at the scale of least L2.4 error, in two stages. First Adam learns for all
    weights of a unit which are rounded up and which down, as AdaRound does for a layer, against
    the error of the unit's output, with float activations inside. Then it learns the scales of
    the unit's inner inputs, straight through rounding (LSQ), from float inputs of the unit.

    Costs, where rounding costs nothing: ``iterations`` runs of every unit on ``batch_size``
    images, forward and backward, and ``input_iterations`` more.

    Differs from source: a unit's second stage comes right after its first, so that later units
    are given what quantized weights and quantized activations make; in the paper all weights of
    the model are learned first, on what quantized weights and float activations make. Inputs of
    layers are quantized, not outputs of blocks. Weight codes are symmetric. The first layer is
    learned, too. Roundings choose between the nearest code and the next nearest, so that weights
    beyond the range may come back. Where a stage is no better on held-out images, its result is
    not taken. Of ``importance`` the published code has a version that is never called; this one
    has the paper's squared gradients, as means over images and places.

    Args:
        iterations: Steps of the first stage for each unit.
        batch_size: Images of a step, or crops of them; rows of a matrix.
        learning_rate: Of roundings.
        regularization: Weight of the push to 0 or 1, beside the squared error summed over
            channels. Published: 0.01, and 0.1 for MobileNetV2.
        warm_start: Part of the iterations that have no push.
        input_iterations: Steps of the second stage.
        input_rate: Its learning rate, in units of the scales, falling to 0 along a cosine.
        importance: ``'fisher'`` weighs the error of each channel of a unit's output by the mean
            squared gradient there, in parts of the channels' mean.
        granularity: What is learned together: ``'layer'``, ``'block'``, ``'stage'``, ``'net'``;
            see ``Method``.
        loss: ``'published'``, or ``'scale_free'``: relative to the variance of the unit's
            outputs, with a regularization of 500 or so.
    """

    iterations: Annotated[int, Range(0)] = 20000
    batch_size: Annotated[int, Range(1)] = 32
    learning_rate: Annotated[float, Range(0, above=True)] = 1e-3
    regularization: Annotated[float, Range(0)] = 0.01
    warm_start: Annotated[float, Range(0, 1)] = 0.2
    input_iterations: Annotated[int, Range(0)] = 5000
    input_rate: Annotated[float, Range(0, above=True)] = 4e-4
    importance: Literal['none', 'fisher'] = 'none'
    granularity: Granularity = 'block'
    loss: LossForm = 'published'

    solves = 'unit'

    @property
    def needs(self) -> Sequence[Need]:  # type: ignore[override]
        """See ``Method``: gradients where channels are weighed by them."""
        return ('sums', 'unit_io', *(('importance',) if self.importance == 'fisher' else ()))

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """Scales of least L2.4 error, one a tensor for inputs."""
        return {'activation': {'mode': 'per_tensor', 'scale_search': 'lp', 'norm': NORM}}

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.round``: where learning starts."""
        scale = weight_scale(weight, num_bits, 'lp', NORM)
        return rounded_at(weight, round_weight(weight, scale, num_bits), scale)

    def solve_unit(self, problem: UnitProblem) -> Iterable[UnitCandidate]:
        """See ``Method.solve_unit``."""
        steps_after = self.input_iterations if own_scales(problem) else 0
        weights = self._learn_roundings(problem, steps_after)
        notes = tuple(f'{note}, with float activations inside' for note in weights.notes)
        yield problem.candidate('learned rounding', notes, weights.figures)
        if steps_after:
            inputs = self._learn_input_scales(problem, weights)
            yield problem.candidate('learned rounding and input scales', (), inputs.figures)

    def _learn_roundings(self, problem: UnitProblem, steps_after: int) -> Learned:
        group = ParameterGroup(parameters=soften(problem), learning_rate=self.learning_rate)
        with dropped_quantization(problem, 1.0, torch.Generator()):  # none is quantized
            learned = learn(problem, Learning(
                groups=[group], steps=self.iterations, batch_size=self.batch_size,
                loss=self.loss, weighted=self.importance == 'fisher',
                push=Push(weight=self.regularization, warm_start=self.warm_start),
                steps_after=steps_after))
        harden(problem)
        return learned

    def _learn_input_scales(self, problem: UnitProblem, before: Learned) -> Learned:
        group = ParameterGroup(parameters=learn_scales(problem), learning_rate=self.input_rate,
                               schedule='cosine')
        learned = learn(problem, Learning(
            groups=[group], stage='input scales', steps=self.input_iterations,
            batch_size=self.batch_size, loss=self.loss, norm=NORM, feed=_float_input,
            weighted=self.importance == 'fisher', steps_before=self.iterations), before)
        harden(problem)
        return learned


def _float_input(draw: Draw, generator: torch.Generator) -> Tensor:
    assert draw.float_input is not None  # asked for by being there
    return draw.float_input
