"""What a model with several widths costs at a plan: bits of a weight, bytes, bit operations."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from mmbitsplit.functional import payload_bytes
from mmbitsplit.models import DataFlow, QuantizedLayer
from mmbitsplit.models.switching import LayerWidths
from mmbitsplit.planning.costs import ALL_ELSE, code_bytes, multiplications, num_weights
from mmbitsplit.planning.latency_table import FLOAT_BITS
from mmbitsplit.planning.width_blocks import WidthBlock, place_widths
from mmbitsplit.structures import LayerSolution, QParams, Widths, WidthTable
from mmbitsplit.structures.widths import MAX_BITS


def block_costs(model: nn.Module, layers: Mapping[str, QuantizedLayer], flow: DataFlow,
                widths: Mapping[str, LayerWidths], blocks: Sequence[WidthBlock],
                ) -> dict[str, WidthTable]:
    """Returns the table of each limit that a plan may have, in the units of ``BudgetSpec``.

    Args:
        model: Quantized; what is counted of it is a model of one width a place, as a plan is
            exported: bytes of scales and biases are those of the widths in use.
        layers: Its quantized layers.
        flow: What was watched of it.
        widths: From ``widths_of``.
        blocks: From ``find_blocks``.
    """
    geometries = {name: layer.geometry for name, layer in layers.items()}
    free = {name: num_weights(geometries[name]) for block in blocks for name in block.places
            if len(widths[name].weight) > 1}
    amounts = {**multiplications(flow, {name: geometry for name, geometry in geometries.items()
                                        if name in flow.output_sizes}),
               **{name: sum(calls.multiplications) for name, calls in flow.products.items()}}
    whole, total = sum(amounts.values()) * MAX_BITS ** 2 or 1, max(1, sum(free.values()))

    def mean_bits(name: str, own: Mapping[str, int]) -> float:
        return own['weight'] * free[name] / total if name in free else 0.0

    def stored(name: str, own: Mapping[str, int]) -> float:
        return float(code_bytes(geometries[name], own['weight'])) if name in layers else 0.0

    def bitops(name: str, own: Mapping[str, int]) -> float:
        first, second = ('weight', 'input') if name in layers else ('a', 'b')
        return amounts.get(name, 0) * own.get(first, FLOAT_BITS) * own.get(
            second, FLOAT_BITS) / whole

    switched = {name for block in blocks for name in block.places}
    fixed = {name: place_widths(own, Widths(MAX_BITS, MAX_BITS)) for name, own in widths.items()
             if name not in switched}
    rest = {'weight_bits': 0.0,
            'bytes': _rest_bytes(model, layers) + sum(stored(*item) for item in fixed.items()),
            'bitops': sum(bitops(*item) for item in fixed.items())}
    return {key: _table(of_place, blocks, widths, rest[key]) for key, of_place in (
        ('weight_bits', mean_bits), ('bytes', stored), ('bitops', bitops))}


def _table(of_place: Callable[[str, Mapping[str, int]], float], blocks: Iterable[WidthBlock],
           widths: Mapping[str, LayerWidths], rest: float) -> WidthTable:
    rows = {block.name: {own: math.fsum(of_place(name, place_widths(widths[name], own))
                                        for name in block.places) for own in block.choices}
            for block in blocks}
    return WidthTable({**rows, ALL_ELSE: {Widths(MAX_BITS): rest}})


def _rest_bytes(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> float:
    """Of all but codes of quantized layers, at the widths in use."""
    inside = {id(value) for layer in layers.values()
              for part in (layer.parameters(), layer.buffers()) for value in part}
    # Once for each tensor, whatever it is called.
    others = {id(value): value for part in (model.parameters(), model.buffers()) for value in part
              if id(value) not in inside}
    return float(payload_bytes([*others.values(), *(
        value for layer in layers.values() for value in _beside_codes(layer.solution()))]))


def _beside_codes(solution: LayerSolution) -> list[Tensor]:
    """Tensors of a solution at one width, without its codes."""
    found = []
    for item in fields(solution):
        value = getattr(solution, item.name)
        if isinstance(value, QParams):
            found += [value.scale, value.zero_point.to(torch.int32)]
        elif isinstance(value, Tensor) and item.name != 'codes':
            found.append(value)
    return found
