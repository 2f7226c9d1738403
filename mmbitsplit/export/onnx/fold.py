"""Finds the layers whose output reaches one quantizer alone, and what may be folded into them.

ECAQ divides a layer's input by one scale a channel. A runtime that fuses whole integer layers
wants one scale for all of a layer's output, so the division moves into the layer before: its weight
scales and bias are divided by the reader's input scales, output channel by output channel, and both
sides have unit scale. ReLU lets positive factors through. Zero points that differ by channel move
along, into the bias, where nothing but a maximum lies between.

Source: Bit-split paper, section 3.2 (ECAQ costs nothing at inference).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmbitsplit.export.onnx.stored_weight import keeps_offset
from mmbitsplit.functional import channel_dim
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.structures import QParams

# op(x * c) == op(x) * c for one factor c > 0 a channel.
SCALES_PASS = ('Relu', 'LeakyRelu', 'MaxPool')
SHIFTS_PASS = ('MaxPool',)  # op(x + c) == op(x) + c for one number c a channel


@dataclass(frozen=True)
class LayerCall:
    """A node that stands for a call of a quantized layer.

    Args:
        node: ``onnx_ir.Node``.
        name: The layer's dotted name.
        layer: The layer.
    """

    node: Any
    name: str
    layer: QuantizedLayer


def find_folds(calls: Mapping[Any, LayerCall]) -> dict[Any, LayerCall]:
    """Returns for each node whose scales take in a reader's input scales, that reader's call.

    Args:
        calls: The calls by node.
    """
    folds = {}
    for node, call in calls.items():
        reader, between = _only_reader(node, calls)
        if reader is not None and _can_fold(call.layer, reader.layer, between):
            folds[node] = reader
    return folds


def between_quantizers(node: Any, calls: Mapping[Any, LayerCall],
                       folds: Mapping[Any, LayerCall]) -> bool:
    """Whether onnxruntime computes a call in integers: one scale before it and one behind it.

    Matrix products need none behind; transposed convolutions have no integer kernel.

    Args:
        node: The call's node.
        calls: All calls by node.
        folds: What ``find_folds`` found.
    """
    layer = calls[node].layer
    qparams, kind = layer.qparams, layer.geometry.kind
    if qparams is None or not qparams.unit or kind == 'conv_transpose2d' or keeps_offset(layer):
        return False
    if kind == 'linear' or node in folds or layer.output_qparams is not None:
        return True
    reader, _ = _only_reader(node, calls)
    behind = None if reader is None else reader.layer.qparams
    return behind is not None and behind.scale.numel() == behind.zero_point.numel() == 1


def one_zero_point(qparams: QParams) -> bool:
    """Whether all channels have the same one."""
    return not bool((qparams.zero_point != qparams.zero_point[0]).any())


def codes_as_they_are(layer: QuantizedLayer) -> bool:
    """Whether a layer's product takes codes with their zero points, which its bias makes good.

    Of a transposed convolution not every output sees every tap, so there it takes them off.
    """
    return (layer.qparams is not None and layer.qparams.unit and not one_zero_point(layer.qparams)
            and layer.geometry.kind != 'conv_transpose2d')


def _only_reader(node: Any, calls: Mapping[Any, LayerCall],
                 ) -> tuple[LayerCall | None, list[str]]:
    """The layer call that alone reads a node's output, and the operators between."""
    between: list[str] = []
    while True:
        output = node.outputs[0]
        readers = {usage.node for usage in output.uses()}
        if len(readers) != 1 or output.is_graph_output():
            return None, between
        node = readers.pop()
        if node in calls:
            return calls[node], between
        if node.domain or node.op_type not in SCALES_PASS or len(node.outputs) != 1:
            return None, between
        between.append(node.op_type)


def _can_fold(producer: QuantizedLayer, reader: QuantizedLayer, between: Sequence[str]) -> bool:
    qparams, geometry = reader.qparams, reader.geometry
    if producer.output_qparams is not None:
        return False  # its output has a quantizer of its own
    if qparams is None or not qparams.unit or qparams.scale.numel() == 1:
        return False  # one scale for all channels is what runtimes want as it is
    if not one_zero_point(qparams) and not (
            codes_as_they_are(reader) and all(operator in SHIFTS_PASS for operator in between)
            and not any((*geometry.padding, *geometry.pre_padding))
            and geometry.auto_padding == 'none'):  # zeros are padded before
        return False
    return (channel_dim(producer.geometry) == channel_dim(geometry)
            and producer.geometry.out_channels == qparams.scale.numel())
