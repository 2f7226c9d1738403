"""Replaces the nodes that stand for quantized layers by quantizers and standard operators."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmbitsplit.export.onnx.fold import LayerCall, between_quantizers, find_folds
from mmbitsplit.export.onnx.layer_nodes import LayerWriter
from mmbitsplit.export.onnx.product_nodes import write_product
from mmbitsplit.export.onnx.requirements import need
from mmbitsplit.export.onnx.trace import DOMAIN, OP_TYPE, PRODUCT_TYPE, STREAM_TYPE
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.models.layers.product import Product
from mmbitsplit.structures import QParams

WEIGHTED = ('Conv', 'ConvTranspose', 'Gemm')


def write_layers(model: Any, layers: Mapping[str, QuantizedLayer],
                 streams: Mapping[str, QParams] | None = None,
                 products: Mapping[str, Product] | None = None, *, format: str = 'int8',
                 fold: bool = True) -> list[tuple[str, str]]:
    """Rewrites a traced model in place; afterwards it holds standard operators alone.

    Args:
        model: ``onnx_ir.Model`` with nodes ``mmbitsplit::Layer``.
        layers: The layers that they name.
        streams: How residual streams are rounded, by the names in nodes ``mmbitsplit::Stream``.
        products: Products of activations, by the names in nodes ``mmbitsplit::Product``.
        format: How codes are stored; see ``storage``. In 4 bits runtimes compute in float.
        fold: Whether scales move into the layer before where its output goes nowhere else.

    Returns:
        For each fold the layer that took the scales and the layer whose scales they are.
    """
    graph, ir = model.graph, need('onnx_ir')
    calls = {}
    for node in graph:
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
            name = node.attributes['layer'].as_string()
            calls[node] = LayerCall(node, name, layers[name])
    folds = find_folds(calls) if fold else {}
    readers = {reader.node for reader in folds.values()}
    integer = {node for node in calls
               if format == 'int8' and between_quantizers(node, calls, folds)}
    deployed = any(call.layer.output_qparams is not None for call in calls.values())
    if deployed or streams:
        _shield_float_weights(graph, ir)
    writer = LayerWriter(graph, format, divide_first=deployed)
    for node, call in calls.items():
        written = writer.write(call, folded_input=node in readers, reader=folds.get(node),
                               in_integers=node in integer)
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], written.nodes, [node.outputs[0]], [written.output])
    for node in [node for node in graph if (node.domain, node.op_type) == (DOMAIN, STREAM_TYPE)]:
        name = node.attributes['stream'].as_string()
        written = writer.write_stream(node, name, (streams or {})[name])
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], written.nodes, [node.outputs[0]], [written.output])
    for node in [node for node in graph if (node.domain, node.op_type) == (DOMAIN, PRODUCT_TYPE)]:
        name = node.attributes['product'].as_string()
        written = write_product(graph, node, name, (products or {})[name])
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], written.nodes, [node.outputs[0]], [written.output])
    model.opset_imports.pop(DOMAIN, None)
    return [(calls[node].name, reader.name) for node, reader in folds.items()]


def _shield_float_weights(graph: Any, ir: Any) -> None:
    """Keeps onnxruntime from quantizing the weights of float layers on its own.

    It does so, coarsely and unasked, where one scale dequantizes the layer's input and the weight
    is an initializer. Stored flat and reshaped, the weight is none until later.
    """
    for node in list(graph):
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if node.domain or node.op_type not in WEIGHTED or weight is None \
                or not weight.is_initializer():
            continue
        array = weight.const_value.numpy()
        parts = []
        for suffix, value in (('flat', array.reshape(-1)),
                              ('shape', np.array(array.shape, np.int64))):
            tensor = ir.tensor(value, name=f'{weight.name}.{suffix}')
            parts.append(ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape,
                                  type=ir.TensorType(tensor.dtype)))
            if tensor.name not in graph.initializers:
                graph.register_initializer(parts[-1])
        parts = [graph.initializers[part.name] for part in parts]
        reshaped = ir.node('Reshape', parts, outputs=[ir.Value(
            name=f'{node.outputs[0].name}_weight')])
        graph.insert_before(node, reshaped)
        node.replace_input_with(1, reshaped.outputs[0])
        if not weight.uses():
            graph.initializers.pop(weight.name)
