"""What each layer costs at each of its widths: bits, bytes of the packed file, operations, time.

Tables are in the units of ``BudgetSpec``, and sum up over layers: what a plan costs is the sum.
"""

import math
from collections.abc import Mapping, Sequence

from torch import nn

from mmbitsplit.functional import packed_bytes, payload_bytes
from mmbitsplit.models import DataFlow, PreparedModel
from mmbitsplit.planning.latency_table import FLOAT_BITS, LatencyTable
from mmbitsplit.structures import LayerGeometry, LayerPlan, ProductPlan, Widths, WidthTable
from mmbitsplit.structures.widths import MAX_BITS

ALL_ELSE = '(all else)'  # a row of bytes: scales, biases, what stays float
PRODUCTS = '(products)'  # a row of operations: products of activations
Choices = Mapping[str, Sequence[Widths]]


def cost_tables(prepared: PreparedModel, flow: DataFlow, choices: Choices,
                latencies: LatencyTable | None = None) -> dict[str, WidthTable]:
    """Returns the table of each limit that a budget may have.

    Args:
        prepared: The model. Where codes are installed, whatever their widths, bytes are exact:
            scales, zero points and biases take the room that they take now. Without, they are
            estimated from the plan.
        flow: Of the float model.
        choices: Widths of all planned layers; one where they are fixed.
        latencies: Gives a table ``'latency'``.

    Raises:
        ValueError: ``latencies`` lacks a layer or widths; names it.
    """
    geometries = {name: prepared.layers[name].geometry for name in choices}
    plans = {plan.name: plan for plan in prepared.plan.layers}
    tables = {'weight_bits': mean_bits(geometries, choices),
              'bytes': stored_bytes(prepared, choices),
              'bitops': bit_operations(
                  {**multiplications(flow, geometries),
                   **{product.name: sum(flow.products[product.name].multiplications)
                      for product in prepared.plan.products}},
                  plans, choices, prepared.plan.products)}
    if latencies is not None:
        tables['latency'] = layer_times(latencies, plans, choices)
    return tables


def mean_bits(geometries: Mapping[str, LayerGeometry], choices: Choices) -> WidthTable:
    """Returns each layer's part of the mean bits of a weight.

    The mean is over layers whose weights have several widths to choose from; others count 0.
    """
    sizes = {name: num_weights(geometries[name]) if _is_free(row) else 0
             for name, row in choices.items()}
    total = max(1, sum(sizes.values()))
    return WidthTable({name: {widths: widths.weight * sizes[name] / total for widths in row}
                       for name, row in choices.items()})


def stored_bytes(prepared: PreparedModel, choices: Choices) -> WidthTable:
    """Returns the bytes of each layer's codes, and in a row ``ALL_ELSE`` those of all else.

    The sum is ``payload_bytes`` of the packed file. See ``cost_tables``.
    """
    table = {name: {widths: float(code_bytes(prepared.layers[name].geometry, widths.weight))
                    for widths in row} for name, row in choices.items()}
    return WidthTable({**table, ALL_ELSE: {Widths(MAX_BITS): float(_all_else(prepared))}})


def code_bytes(geometry: LayerGeometry, num_bits: int) -> int:
    """Returns the bytes that a layer's packed codes take."""
    return geometry.out_channels * packed_bytes(geometry.inputs_per_output, num_bits)


def num_weights(geometry: LayerGeometry) -> int:
    """Returns the number of a layer's weights."""
    return geometry.out_channels * geometry.inputs_per_output


def multiplications(flow: DataFlow, geometries: Mapping[str, LayerGeometry]) -> dict[str, int]:
    """Returns how many multiplications of inputs with weights each layer made when watched.

    Args:
        flow: Of one batch, or the most that some batches showed.
        geometries: Of the layers.
    """
    found = {}
    for name, geometry in geometries.items():
        if geometry.kind == 'conv_transpose2d':  # each input meets all weights of its channel
            found[name] = sum(flow.input_sizes[name]) * num_weights(geometry) \
                // geometry.in_channels
        else:
            found[name] = sum(flow.output_sizes[name]) * geometry.inputs_per_output
    return found


def bit_operations(amounts: Mapping[str, int], plans: Mapping[str, LayerPlan], choices: Choices,
                   products: Sequence[ProductPlan] = ()) -> WidthTable:
    """Returns multiplications times both widths, in parts of those with 8 bits everywhere.

    Products of activations count in a row ``PRODUCTS``: their widths are those of the request.

    Args:
        amounts: Multiplications by layer and product.
        plans: They give the width of inputs that are not chosen; float ones count as 32 bits.
        choices: Widths of all planned layers.
        products: Plans of the products.
    """
    whole = sum(amounts[name] * MAX_BITS * _widest_input(plans[name]) for name in choices) or 1
    bits = {product.name: [side.num_bits for _, side in product.sides()] for product in products}
    whole += sum(amounts[name] * math.prod(FLOAT_BITS if one is None else MAX_BITS for one in own)
                 for name, own in bits.items())
    rows = {name: {
        widths: amounts[name] * widths.weight * _input_bits(plans[name], widths) / whole
        for widths in row} for name, row in choices.items()}
    if products:
        rows[PRODUCTS] = {Widths(MAX_BITS): sum(
            amounts[name] * math.prod(one or FLOAT_BITS for one in own)
            for name, own in bits.items()) / whole}
    return WidthTable(rows)


def layer_times(latencies: LatencyTable, plans: Mapping[str, LayerPlan], choices: Choices,
                ) -> WidthTable:
    """Returns the measured time, in parts of that with 8 bits everywhere.

    Args:
        latencies: Times of all layers.
        plans: They give the width of inputs that are not chosen.
        choices: Widths of all planned layers.

    Raises:
        ValueError: A layer or its widths are missing; names it.
    """
    whole = sum(latencies.of(name, MAX_BITS, _widest_input(plans[name])) for name in choices) or 1
    return WidthTable({name: {
        widths: latencies.of(name, widths.weight, _input_bits(plans[name], widths)) / whole
        for widths in row} for name, row in choices.items()})


def _is_free(row: Sequence[Widths]) -> bool:
    return len({widths.weight for widths in row}) > 1


def _widest_input(plan: LayerPlan) -> int:
    return FLOAT_BITS if plan.activation.num_bits is None else MAX_BITS


def _input_bits(plan: LayerPlan, widths: Widths) -> int:
    return widths.activation or plan.activation.num_bits or FLOAT_BITS


def _all_else(prepared: PreparedModel) -> int:
    """Bytes of all but codes; what is not solved yet is estimated."""
    state = dict(prepared.model.state_dict())
    names: dict[nn.Module, list[str]] = {}
    for name, module in prepared.model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    codes = expected = 0
    zeros: set[int] = set()
    for layer_plan in prepared.plan.layers:
        layer = prepared.layers[layer_plan.name]
        if layer.quantized:
            codes += code_bytes(layer.geometry, layer.num_bits or MAX_BITS)
            continue
        for key in [key for key in state if key.rpartition('.')[0] in names[layer]]:
            del state[key]
        expected += 4 * layer.geometry.out_channels * (1 + (layer.product_bias is not None))
        for size in _scales(layer_plan, layer.geometry):
            expected += 4 * size
            if layer_plan.activation.symmetry == 'asymmetric':
                expected += 4 * size
            else:  # zero points of 0, equal ones of all layers once
                zeros.add(size)
    for plan in prepared.plan.products:
        if not prepared.products[plan.name].quantized:  # a scale and a zero point each
            expected += 8 * sum(side.num_bits is not None and side.softmax != 'log2'
                                for _, side in plan.sides())
    return payload_bytes(state.values()) - codes + expected + 4 * sum(zeros)


def _scales(plan: LayerPlan, geometry: LayerGeometry) -> list[int]:
    """How many scales a layer's input and output will have."""
    sizes = []
    if plan.activation.num_bits is not None:
        sizes.append(1 if plan.activation.mode == 'per_tensor' else geometry.in_channels)
    return sizes + [1] * (plan.output is not None)
