"""AdaQuant: weights, scales and biases of each layer learned straight through rounding."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mmbitsplit.functional import (
    ActivationSamples,
    code_range,
    per_input,
    round_weight,
    rows_to_weight,
    search_qparams,
    weight_rows,
    weight_scale,
)
from mmbitsplit.methods.base import Granularity, register_method
from mmbitsplit.methods.rounding import RoundingMethod, rounded_at
from mmbitsplit.methods.unit_learning import Learning, learn
from mmbitsplit.methods.unit_learning_optimizers import ParameterGroup
from mmbitsplit.methods.unit_learning_state import harden
from mmbitsplit.methods.unit_problem import (
    UnitCandidate,
    UnitLayer,
    UnitProblem,
    positions,
    steps_of,
)
from mmbitsplit.structures import QParams, Range, WeightSolution

MOST_SAMPLES = 1 << 20  # values that the scale of a float input is searched on, about


@register_method
@dataclass(frozen=True)
class AdaQuant(RoundingMethod):
    """AdaQuant (Hubara et al., ICML 2021): everything of a layer learned, codes as far as they go.

    From rounding at the range of the weights, Adam moves real weights, whose codes are what they
    round to, further than to a neighbour where that helps; with them the scale of each output
    channel, the bias, and the input's scale and zero point, against the squared error of the
    layer's output. Gradients pass rounding straight through. Where everything reads the output
    through a ReLU, the error is that after it.

    Costs, where rounding costs nothing: ``iterations`` runs of every layer on ``batch_size``
    images, forward and backward.

    Differs from source: weights are symmetric in a narrow range unless ``weight_offset``; zero
    points are whole, and learned where inputs have two sides; a learned range grows around zero,
    not around its low end; the range of an input is all that was seen, not the mean of what each
    image has; ``'sequential'`` gives all batches what the quantized model gives the layer, their
    code the first alone; gradients do not pass where a weight is beyond the range unless
    ``clipped_gradient``; the ReLU is in the error wherever one follows; biases are whole steps of
    the integer product; where learning is no better on held-out images, rounding stays. Embeddings
    and products of activations stay float.

    Args:
        iterations: Steps for each layer.
        batch_size: Images of a step, or crops of them; rows of a matrix.
        flavour: ``'sequential'``: a layer is learned on what the quantized layers before it give.
            ``'parallel'``: on what the float model gives it, its input's scale included, so that
            what is learned of a layer does not depend on the bits of others: what a choice of bits
            needs. Layers of larger units keep input scales that were found in the quantized model.
        granularity: What is learned together: ``'layer'``, ``'block'``, ``'stage'``, ``'net'``;
            see ``Method``.
        weight_rate: Learning rate of the weights, in their units.
        bias_rate: Of the biases.
        weight_range_rate: Of the range that the codes of a channel cover, in units of the weights,
            and of the offset.
        input_range_rate: Of the range that the codes of an input cover, in its units, and of its
            zero point in the same.
        weight_offset: Whether a real number is added to all weights of a channel, begun at the
            middle of their range, as in the source. It costs a runtime the sum of the inputs.
        clipped_gradient: Whether gradients reach weights beyond the range, as in the source's
            code.
    """

    iterations: Annotated[int, Range(0)] = 1000
    batch_size: Annotated[int, Range(1)] = 50
    flavour: Literal['sequential', 'parallel'] = 'sequential'
    granularity: Granularity = 'layer'
    weight_rate: Annotated[float, Range(0, above=True)] = 1e-5
    bias_rate: Annotated[float, Range(0, above=True)] = 1e-3
    weight_range_rate: Annotated[float, Range(0, above=True)] = 1e-3
    input_range_rate: Annotated[float, Range(0, above=True)] = 1e-1
    weight_offset: bool = False
    clipped_gradient: bool = False

    needs = ('sums', 'unit_io')
    solves = 'unit'

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """Ranges of all that is seen; one scale a tensor for inputs, two-sided with zero point."""
        return {'weight': {'scale_search': 'minmax'},
                'activation': {'mode': 'per_tensor', 'symmetry': 'asymmetric',
                               'scale_search': 'minmax'}}

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.round``: where learning starts."""
        offset, centred = None, weight
        if self.weight_offset:
            offset = (weight.amax(-1) + weight.amin(-1)) / 2
            centred = weight - offset.unsqueeze(-1)
        scale = weight_scale(centred, num_bits, 'minmax')
        return rounded_at(weight, round_weight(centred, scale, num_bits), scale, offset)

    def solve_unit(self, problem: UnitProblem) -> Iterable[UnitCandidate]:
        """See ``Method.solve_unit``."""
        parallel = self.flavour == 'parallel'
        if parallel:
            self._begin_on_float_inputs(problem)
        before = {name: solution.codes for name, solution in problem.solutions().items()}
        groups = [group for name, layer in problem.layers.items()
                  for group in self._groups(name, layer)]
        learned = learn(problem, Learning(
            groups=groups, steps=self.iterations, batch_size=self.batch_size,
            feed=(lambda draw, generator: draw.float_input) if parallel else None))
        harden(problem)
        moved = torch.cat([(solution.codes.int() - before[name].int()).abs().flatten()
                           for name, solution in problem.solutions().items()])
        figures = {**learned.figures, 'codes_moved': float((moved > 0).double().mean()),
                   'codes_moved_far': float((moved > 1).double().mean())}
        yield problem.candidate('learned', (
            f'{100 * figures["codes_moved"]:.4g} % of the codes moved in {self.iterations} '
            f'iterations, {100 * figures["codes_moved_far"]:.4g} % by more than a step',), figures)

    def _groups(self, name: str, layer: UnitLayer) -> list[ParameterGroup]:
        """What is learned of a layer: four optimizers in the source, with rates in real units."""
        weights, inputs = layer.weight_quantizer, layer.input_quantizer
        weights.loosen(positions(layer), steps=steps_of(layer),
                       everywhere=self.clipped_gradient, follow=True)
        weights.learn(scale='raw', offset=self.weight_offset, bias=weights.bias is not None)
        if weights.bias is not None:  # not in whole steps of the product, until the end
            weights.bias.detach().copy_(layer.bias)
        low, high = code_range(weights.num_bits, signed=True, narrow_range=True)
        # What weights are multiplied by beside their own scale.
        carried = 1.0 if inputs is None or not inputs.unit else float(inputs.scale.mean())
        rates = {'codes': self.weight_rate, 'bias': self.bias_rate,
                 'scale': self.weight_range_rate * carried / (high - low),
                 'offset': self.weight_range_rate * carried}
        groups = [_group(name, 'weight', part, value, rates[part])
                  for part, value in weights.learned().items()]
        if inputs is None or layer.plan.stream:  # others read the stream by the same scale
            return groups
        two_sided = inputs.quant_min == 0 and bool((inputs.zero_point > 0).any())
        step = float(inputs.scale.mean())
        inputs.learn('raw', zero_point=two_sided, carrier=weights)
        rates = {'scale': self.input_range_rate / (inputs.quant_max - inputs.quant_min),
                 'zero_point': self.input_range_rate / step}
        return groups + [_group(name, 'input', part, value, rates[part])
                         for part, value in inputs.learned().items()]

    def _begin_on_float_inputs(self, problem: UnitProblem) -> None:
        """A unit of one layer begins anew, from its input in the float model.

        Raises:
            ValueError: Its input has scales that this does not know how to find.
        """
        if len(problem.layers) > 1:
            return
        (name, layer), = problem.layers.items()
        if layer.input_quantizer is None or layer.plan.stream:
            return
        spec, geometry = layer.plan.activation, layer.geometry
        if spec.mode == 'ecaq':
            raise ValueError(f"layer '{name}': activation.mode='ecaq' is not supported by AdaQuant "
                             "with flavour='parallel'; use 'per_tensor' or 'per_channel', or "
                             "flavour='sequential'.")
        search = 'minmax' if spec.scale_search == 'auto' else spec.scale_search
        found = search_qparams(
            _samples([call.float_input for call in problem.fit], linear=geometry.kind == 'linear'),
            spec.num_bits, symmetry=spec.symmetry, per_channel=spec.mode == 'per_channel',
            search=search, norm=spec.norm, bit_allocation=spec.bit_allocation)
        self._install(layer, replace(found, unit=layer.input_quantizer.unit))

    def _install(self, layer: UnitLayer, inputs: QParams) -> None:
        """Rounds a layer's weight for an input that is quantized so."""
        geometry, solution = layer.geometry, layer.solution()
        rows = weight_rows(layer.weight, geometry)
        if inputs.unit:  # weights carry the scales of the inputs
            rows = rows * per_input(inputs.scale, geometry).unsqueeze(1)
        rounded = self.round(rows, solution.num_bits)
        layer.install(replace(
            solution, codes=rows_to_weight(rounded.codes, geometry), qparams=inputs,
            weight_scale=rounded.scale.flatten(),
            weight_offset=None if rounded.offset is None else rounded.offset.flatten()))


def _group(layer: str, side: str, part: str, value: Tensor, rate: float) -> ParameterGroup:
    return ParameterGroup(parameters={f'{layer}.{side}_{part}': value}, learning_rate=rate)


def _samples(inputs: list[Tensor], linear: bool) -> ActivationSamples:
    """A layer's inputs of several calls, channel by channel, evenly thinned out."""
    values = torch.cat([(x if linear else x.movedim(-3, -1)).flatten(0, -2).t() for x in inputs], 1)
    every = max(1, values.numel() // MOST_SAMPLES)
    return ActivationSamples(values[:, ::every].contiguous(), values.amin(1), values.amax(1))
