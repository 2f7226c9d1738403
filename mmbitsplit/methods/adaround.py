"""AdaRound: learns layer by layer which weights are rounded up and which down."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from mmbitsplit.functional import channel_dim, round_weight, weight_scale
from mmbitsplit.functional.quantizers.soft_rounding import rectified_sigmoid
from mmbitsplit.functional.solvers.learned_rounding import (
    beta_at,
    decided_share,
    reconstruction_loss,
    rounding_regulariser,
)
from mmbitsplit.methods.base import register_method
from mmbitsplit.methods.rounding import RoundingMethod, rounded_at
from mmbitsplit.methods.unit_problem import UnitCall, UnitCandidate, UnitProblem, positions
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
    images, forward and backward. One process does it.

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
    """

    iterations: Annotated[int, Range(0)] = 10000
    batch_size: Annotated[int, Range(1)] = 32
    learning_rate: Annotated[float, Range(0, above=True)] = 1e-3
    regularization: Annotated[float, Range(0)] = 0.01
    warm_start: Annotated[float, Range(0, 1)] = 0.2

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
        quantizers = [layer.weight_quantizer for layer in problem.layers.values()]
        for quantizer, layer in zip(quantizers, problem.layers.values()):
            quantizer.soften(positions(layer))
        # V of Eq. 22, where quantizers look for it in each forward.
        learned = [quantizer.rounding for quantizer in quantizers]
        optimizer = torch.optim.Adam(learned, lr=self.learning_rate)
        dim = channel_dim([*problem.layers.values()][-1].geometry)
        groups = _alike(problem.fit)
        for step in range(self.iterations):
            x, wanted = _draw(groups, self.batch_size, problem.generator(step))
            # Eq. 25: float output of float inputs, output of quantized inputs, both after the ReLU.
            loss = reconstruction_loss(problem.as_read(problem.forward(x)),
                                       problem.as_read(wanted), dim)
            beta = beta_at(step, self.iterations, self.warm_start)
            if beta is not None:
                loss = loss + self.regularization * sum(
                    rounding_regulariser(rectified_sigmoid(v), beta) for v in learned)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        share = decided_share(torch.cat([rectified_sigmoid(v.detach()).flatten()
                                         for v in learned]))
        for quantizer in quantizers:
            quantizer.harden()
        yield problem.candidate('learned rounding', (
            f'{100 * share:.4g} % of the roundings were decided (0 or 1) after {self.iterations} '
            'iterations, the others were made whole then',))


def _alike(calls: Sequence[UnitCall]) -> list[list[UnitCall]]:
    """Calls whose images can stand in one batch, in order of the first of each kind."""
    groups: dict[tuple, list[UnitCall]] = {}
    for call in calls:
        shapes = (tuple(call.quantized_input.shape[1:]), tuple(call.float_output.shape[1:]))
        groups.setdefault(shapes, []).append(call)
    return list(groups.values())


def _draw(groups: Sequence[Sequence[UnitCall]], size: int, generator: torch.Generator,
          ) -> tuple[Tensor, Tensor]:
    """Draws images of one shape, each once; shapes in proportion to their images.

    Args:
        groups: Calls of one shape each.
        size: Most images.
        generator: Of the step.

    Returns:
        Quantized inputs and float outputs.
    """
    counts = torch.tensor([sum(len(call.float_output) for call in calls) for calls in groups])
    group = int(torch.multinomial(counts.double(), 1, generator=generator))
    drawn = torch.randperm(int(counts[group]), generator=generator)[:size].sort().values
    inputs, outputs, first = [], [], 0
    for call in groups[group]:
        count = len(call.float_output)
        chosen = drawn[(drawn >= first) & (drawn < first + count)] - first
        first += count
        if len(chosen):
            chosen = chosen.to(call.float_output.device)
            inputs.append(call.quantized_input.index_select(0, chosen))
            outputs.append(call.float_output.index_select(0, chosen))
    return torch.cat(inputs), torch.cat(outputs)
