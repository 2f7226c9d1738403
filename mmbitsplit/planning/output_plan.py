"""Which outputs are quantized besides layer inputs, for runtimes that compute between quantizers.

Source: onnxruntime and TensorRT run a convolution in integers only where its output is quantized
per tensor. Where that output goes to one layer input alone, the scales of that input's quantizer
can be folded into this layer, and no quantizer of its own is needed.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from torch import nn

from mmbitsplit.models.layers.geometry import layer_kind
from mmbitsplit.models.surgery.modules import get_module
from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.models.watch.output_readers import Reading
from mmbitsplit.structures import LayerPlan, OutputPlan, PlanRow, PlanSpec
from mmbitsplit.structures.given_plan import AS_REQUESTED


def plan_outputs(layers: Sequence[LayerPlan], model: nn.Module, flow: DataFlow,
                 folded: Mapping[str, str], given: PlanSpec | None = None,
                 ) -> tuple[LayerPlan, ...]:
    """Adds to the plans of all layers how outputs are read, and which are quantized, and how.

    Args:
        layers: Plans in execution order.
        model: The float model.
        flow: Its data flow.
        folded: Layer by batch norm that can be folded; it is where the layer is planned.
        given: A plan whose ``output_bits`` win.
    """
    rows = given.rows if given is not None else {}
    norms = {layer: norm for norm, layer in folded.items()}
    plans = {layer.name: layer for layer in layers}
    planned = []
    for layer in layers:
        readings = flow.readings[norms.get(layer.name, layer.name)]
        read = replace(layer, rectified=bool(readings) and all(
            reading.rectified for reading in readings))
        planned.append(replace(read, output=_output_plan(
            read, readings, plans, model, flow, rows.get(layer.name))))
    return tuple(planned)


def _output_plan(layer: LayerPlan, readings: Set[Reading], plans: Mapping[str, LayerPlan],
                 model: nn.Module, flow: DataFlow, row: PlanRow | None) -> OutputPlan | None:
    """Says how one output is to be quantized, ``None`` for not at all."""
    activation = layer.activation
    if row is not None and row.output_bits != AS_REQUESTED:
        return None if row.output_bits is None else OutputPlan(
            row.output_bits, layer.rectified)
    if activation.placement != 'deploy' or activation.num_bits is None or 'last' in layer.role:
        return None
    readers = {reading.reader for reading in readings}
    if len(readers) == 1 and _folds(layer, plans.get(*readers), model, flow):
        return None
    return OutputPlan(activation.output_bits, layer.rectified)


def _folds(layer: LayerPlan, reader: LayerPlan | None, model: nn.Module, flow: DataFlow) -> bool:
    """Whether the scales of a reader's input can be folded into the layer."""
    if reader is None or reader.activation.num_bits is None \
            or reader.activation.mode == 'per_channel':
        return False
    if reader.name in flow.inside and flow.inside[reader.name].before:
        return False  # its class changes the tensor first
    # The channels of a linear layer run along the last dimension.
    ours, theirs = (layer_kind(get_module(model, plan.name)) == 'linear'
                    for plan in (layer, reader))
    return ours == theirs
