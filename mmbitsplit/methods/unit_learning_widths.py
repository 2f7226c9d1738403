"""Layers of a unit that learn at several widths: a pair of quantizers a width, one rounding.

While a unit is learned each of its layers has, for each width, a weight quantizer and an input
quantizer, and ``use`` puts those of a width into all layers. The weight quantizers of a layer share
one rounding; an input quantizer stands beside several of them where they have the same input
width. ``solutions`` joins what they have become.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmbitsplit.functional import whole_steps
from mmbitsplit.functional.quantizers.shared_rounding import first_rounding
from mmbitsplit.functional.quantizers.soft_rounding import inverse_rectified_sigmoid
from mmbitsplit.methods.unit_learning_activations import own_scales
from mmbitsplit.methods.unit_learning_state import roundings
from mmbitsplit.methods.unit_problem import UnitLayer, UnitProblem, positions
from mmbitsplit.structures import LayerSolution, QParams, Widths

WidthStart = Literal['lowest', 'mean']


def one_width(solution: LayerSolution, widths: Widths) -> LayerSolution:
    """Of a solution with several widths, one pair by itself; a width that it lacks is the widest.

    Args:
        solution: As ``QuantizedLayer.solution`` gives it.
        widths: Of weight and input.
    """
    weight = next((one for one in solution.narrower if one.num_bits == widths.weight), solution)
    inputs = next((one for one in solution.narrower_inputs if one.num_bits == widths.activation),
                  solution.qparams)
    scale, offset = weight.weight_scale, weight.weight_offset
    factor = _factor(inputs, solution.qparams)
    return replace(solution, codes=weight.codes, num_bits=weight.num_bits,
                   weight_scale=scale * factor, bias=weight.bias,
                   weight_offset=None if offset is None else offset * factor, qparams=inputs,
                   narrower=(), narrower_inputs=(), nesting=None)


def _factor(inputs: QParams | None, widest: QParams | None) -> float:
    """What a weight that carries the scale of its widest input is multiplied by at another."""
    if inputs is None or widest is None or not inputs.unit:
        return 1.0
    return float(inputs.scale.double().mean() / widest.scale.double().mean())


@dataclass
class _Pairs:
    """Quantizers of one layer.

    Args:
        layer: It.
        start: Its solution with all widths.
        weights: By the widths that it has.
        inputs: By input width, ``None`` for a float input.
        output: Of its output.
    """

    layer: UnitLayer
    start: LayerSolution
    weights: dict[Widths, Any] = field(default_factory=dict)
    inputs: dict[int | None, Any] = field(default_factory=dict)
    output: Any = None

    def own(self, widths: Widths) -> Widths:
        """What the layer has for widths of the unit."""
        one = one_width(self.start, widths)
        return Widths(one.num_bits, None if one.qparams is None else one.qparams.num_bits)

    def use(self, widths: Widths) -> None:
        mine = self.own(widths)
        self.layer.put(self.weights[mine], self.inputs[mine.activation], self.output)


@dataclass(frozen=True)
class _Carriers:
    """Weight quantizers that all hold the scale of one input."""

    weights: Sequence[Any]

    def carry(self, growth: Callable[[], Tensor]) -> None:
        """See ``WeightQuantizer.carry``."""
        for one in self.weights:
            one.carry(growth)


class LearnedWidths:
    """The layers of a unit while they are learned at several widths.

    Args:
        problem: The unit; its layers are solved at all widths.
    """

    def __init__(self, problem: UnitProblem):
        self.problem, self.pairs = problem, {}
        for name, layer in problem.layers.items():
            one = self.pairs[name] = _Pairs(layer, layer.solution())
            for widths in problem.widths:
                mine = one.own(widths)
                if mine in one.weights:
                    continue
                layer.install(one_width(one.start, widths))
                one.weights[mine] = layer.weight_quantizer
                one.inputs.setdefault(mine.activation, layer.input_quantizer)
                one.output = layer.output_quantizer
        self.use(problem.widths[-1])

    def use(self, widths: Widths) -> None:
        """Switches all layers, products and residual streams."""
        for one in self.pairs.values():
            one.use(widths)
        self.problem.use_others(widths)

    def soften(self, start: WidthStart = 'lowest') -> dict[str, Tensor]:
        """Gives each layer one rounding for all widths, to be learned.

        Args:
            start: ``'lowest'``: the lowest width begins as the float weight. ``'mean'``: all of
                them do on average.

        Returns:
            v of each layer's ``h(v)`` by name.
        """
        for one in self.pairs.values():
            found = {}
            for mine, weight in one.weights.items():
                one.layer.put(weight, one.inputs[mine.activation], one.output)
                found[mine] = positions(one.layer)
            if len(one.weights) == 1:
                weight.soften(found[mine])
                continue
            lowest = min(found, key=lambda widths: widths.weight)
            first = first_rounding([found[lowest]] if start == 'lowest' else [*found.values()])
            rounding = nn.Parameter(inverse_rectified_sigmoid(first.float()))
            for mine, weight in one.weights.items():
                weight.share(found[mine], rounding)
        self.use(self.problem.widths[-1])
        return roundings(self.problem)

    def learn_scales(self) -> dict[str, Tensor]:
        """Lets gradients move the scales of inputs, of each width its own, and of outputs (LSQ).

        Biases are the float ones from here on, not in whole steps of scales that move.
        """
        found: dict[str, Tensor] = {}
        for name, one in self.pairs.items():
            for weight in one.weights.values():
                if one.layer.bias is not None:
                    weight.bias.copy_(one.layer.bias)
            if one.layer.plan.stream:
                continue
            for bits, quantizer in one.inputs.items():
                if quantizer is None:
                    continue
                carriers = _Carriers([weight for mine, weight in one.weights.items()
                                      if mine.activation == bits])
                quantizer.learn('raw', gradient_factor=True, carrier=carriers)
                found[f'{name}.input_scale.{bits}'] = quantizer.learned()['scale']
        for name, (_, quantizer) in own_scales(self.problem).items():
            if name.endswith('.output_scale'):
                quantizer.learn('raw', gradient_factor=True)
                found[name] = quantizer.learned()['scale']
        return found

    def harden(self) -> None:
        """Ends all that is learned."""
        for one in self.pairs.values():
            for quantizer in (*one.weights.values(), *one.inputs.values(), one.output):
                if quantizer is not None:
                    quantizer.harden()

    def solutions(self) -> dict[str, LayerSolution]:
        """All widths of each layer in one solution, as they are now."""
        return {name: _joined(one) for name, one in self.pairs.items()}


def _joined(pairs: _Pairs) -> LayerSolution:
    start, found = pairs.start, {}
    inputs = {one.num_bits: one for one in (start.qparams, *start.narrower_inputs)
              if one is not None}
    for mine, weight in pairs.weights.items():
        pairs.layer.put(weight, pairs.inputs[mine.activation], pairs.output)
        one = pairs.layer.solution()
        if one.qparams is not None:
            inputs[one.qparams.num_bits] = one.qparams
        found.setdefault(one.num_bits, one)
    widest_input = inputs[max(inputs)] if inputs else None
    weights = {bits: _on(one, widest_input) for bits, one in found.items()}
    widest, *narrower = (weights[bits] for bits in sorted(weights, reverse=True))
    return replace(widest, narrower=tuple(narrower), narrower_inputs=tuple(
        inputs[bits] for bits in sorted(inputs, reverse=True)[1:]))


def _on(one: LayerSolution, widest: QParams | None) -> LayerSolution:
    """A width of the weight that carries the scale of the widest input, its bias in whole steps
    where inputs are."""
    scale = one.weight_scale / _factor(one.qparams, widest)
    bias = one.bias
    if bias is not None and widest is not None and widest.unit:
        bias = whole_steps(bias, scale)
    return replace(one, weight_scale=scale, bias=bias, qparams=widest)


def default_groups(widths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The low, middle and high group of widths: up to 4 (so that 3 and 4 share one, as the paper
    says), 5 and 6, 7 and 8; where one of them is empty, thirds of the widths in their order.

    Two widths are the low one and, as middle and high, the other.
    """
    ordered = tuple(sorted(set(widths)))
    groups = tuple(tuple(bits for bits in ordered if low <= bits <= high)
                   for low, high in ((2, 4), (5, 6), (7, 8)))
    if all(groups):
        return groups
    if len(ordered) < 3:
        return ordered[:1], ordered[-1:], ordered[-1:]
    third, more = divmod(len(ordered), 3)  # what is left over makes the lower ones larger
    sizes = [third + (index < more) for index in range(3)]
    first = [sum(sizes[:index]) for index in range(3)]
    return tuple(ordered[start:start + size] for start, size in zip(first, sizes))


def places(groups: Sequence[Sequence[int]], widths: Sequence[Widths]) -> list[list[int]]:
    """Of each group, which of the unit's widths are its."""
    by_bits: Mapping[int, int] = {one.weight: index for index, one in enumerate(widths)}
    return [[by_bits[bits] for bits in group] for group in groups]


@torch.no_grad()
def reopen(rounding: Mapping[str, Tensor], least: float) -> None:
    """Takes roundings that are decided back to where gradients pass.

    Args:
        rounding: v by name, changed in place.
        least: How far h is from 0 and from 1 afterwards, at least.
    """
    end = float(inverse_rectified_sigmoid(torch.tensor(1 - least)))
    for v in rounding.values():
        v.clamp_(-end, end)
