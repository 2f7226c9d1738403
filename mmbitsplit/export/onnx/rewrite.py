"""Replaces the nodes that stand for quantized layers by quantizers and standard operators."""

from collections.abc import Mapping
from typing import Any

from mmbitsplit.export.onnx.fold import LayerCall, between_quantizers, find_folds
from mmbitsplit.export.onnx.layer_nodes import LayerWriter
from mmbitsplit.export.onnx.requirements import need
from mmbitsplit.export.onnx.trace import DOMAIN, OP_TYPE
from mmbitsplit.models import QuantizedLayer


def write_layers(model: Any, layers: Mapping[str, QuantizedLayer], *, four_bit: bool = False,
                 fold: bool = True) -> list[tuple[str, str]]:
    """Rewrites a traced model in place; afterwards it holds standard operators alone.

    Args:
        model: ``onnx_ir.Model`` with nodes ``mmbitsplit::Layer``.
        layers: The layers that they name.
        four_bit: Whether codes of at most 4 bits are stored in 4 bits.
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
    integer = {node for node in calls if not four_bit and between_quantizers(node, calls, folds)}
    deployed = any(getattr(call.layer, 'output_qparams', None) is not None
                   for call in calls.values())
    writer = LayerWriter(graph, four_bit, divide_first=deployed)
    for node, call in calls.items():
        written = writer.write(call, folded_input=node in readers, reader=folds.get(node),
                               in_integers=node in integer)
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], written.nodes, [node.outputs[0]], [written.output])
    model.opset_imports.pop(DOMAIN, None)
    return [(calls[node].name, reader.name) for node, reader in folds.items()]
