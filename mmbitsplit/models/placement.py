"""Which outputs are quantized besides layer inputs, for runtimes that compute between quantizers.

Source: onnxruntime and TensorRT run a convolution in integers only where its output is quantized
per tensor. Where that output goes to one layer input alone, the scales of that input's quantizer
can be folded into this layer, and no quantizer of its own is needed.
"""

from collections.abc import Mapping

from mmbitsplit.models.dataflow import DataFlow
from mmbitsplit.models.readers import Reading
from mmbitsplit.structures import LayerPlan, OutputPlan


def output_readings(name: str, flow: DataFlow, folded: Mapping[str, str]) -> set[Reading]:
    """Returns how a layer's output is read once batch norms are folded into their layers.

    Args:
        name: The layer.
        flow: Of the float model.
        folded: Layer by batch norm.
    """
    norm = next((norm for norm, layer in folded.items() if layer == name), name)
    return flow.readings[norm]


def plan_output(layer: LayerPlan, plans: Mapping[str, LayerPlan], flow: DataFlow,
                folded: Mapping[str, str], linear: Mapping[str, bool]) -> OutputPlan | None:
    """Says how a layer's output is to be quantized, ``None`` for not at all.

    Args:
        layer: Its plan so far.
        plans: Of all planned layers.
        flow: Of the float model.
        folded: Layer by batch norm that is folded.
        linear: By layer, whether it is a linear one, whose channels run along the last dimension.
    """
    activation = layer.activation
    if activation.placement != 'deploy' or activation.num_bits is None or 'last' in layer.role:
        return None
    readings = output_readings(layer.name, flow, folded)
    readers = {reading.reader for reading in readings}
    if len(readers) == 1:
        reader = plans.get(*readers)
        if reader is not None and reader.activation.num_bits is not None \
                and reader.activation.mode != 'per_channel' \
                and linear[reader.name] == linear[layer.name]:
            return None
    return OutputPlan(activation.output_bits, all(reading.rectified for reading in readings))
