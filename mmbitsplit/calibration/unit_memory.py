"""What learning a unit takes, estimated before it starts."""

import math
from collections.abc import Mapping, Sequence

from mmbitsplit.models import DataFlow
from mmbitsplit.passes.crops import INNER, one_side
from mmbitsplit.structures import LayerGeometry, Unit

# Copies of the inputs and outputs of a unit's layers in a step: 2.2 that are kept for the backward
# pass, measured with learned scales; gradients under way; the images that were drawn.
MAP_COPIES = 4
# Of its weights: roundings, gradients, two moments, the best so far, soft weights, what comes
# between.
WEIGHT_COPIES = 8


def learning_bytes(flow: DataFlow, units: Sequence[Unit], geometries: Mapping[str, LayerGeometry],
                   *, batch_size: int, total: float, budget: int, inputs: int = 2) -> int:
    """Bytes of a step of the unit that takes most.

    Args:
        flow: What was seen of the watched batch.
        units: Of the model.
        geometries: Of the planned layers.
        batch_size: Images of a step, or crops of them.
        total: All batches of all processes, in units of the watched one.
        budget: Bytes of inputs and outputs of a unit; what is more is seen in crops, if it can be.
        inputs: Maps of a unit's input that are kept, see ``Collection``.
    """
    most = 0.0
    for unit in units:
        layers = [geometries[name] for name in unit.layers]
        maps = [_of_one(geometry, flow.output_sizes[name], flow.output_rows[name])
                for name, geometry in zip(unit.layers, layers)]
        rows = sum(flow.output_rows[unit.layers[0]]) * total
        given, kept = maps[0][0], maps[-1][1]
        step = min(batch_size, rows)
        if 4 * (inputs * given + kept) * rows > budget and all(
                geometry.kind == 'conv2d' for geometry in layers):
            step = min(step, batch_size * _area_of_crop(layers, kept))
        weights = sum(math.prod(geometry.weight_shape) for geometry in layers)
        most = max(most, 4 * (MAP_COPIES * step * sum(map(sum, maps)) + WEIGHT_COPIES * weights))
    return int(most)


def _of_one(geometry: LayerGeometry, sizes: Sequence[int], rows: Sequence[int],
            ) -> tuple[float, float]:
    """Inputs and outputs of a layer for one image; of several levels, for one of each."""
    outputs = sum({size / row for size, row in zip(sizes, rows) if row})
    steps = float(math.prod(geometry.stride))
    if geometry.kind == 'conv_transpose2d':
        steps = 1 / steps
    return outputs / geometry.out_channels * geometry.in_channels * steps, outputs


def _area_of_crop(layers: Sequence[LayerGeometry], outputs: float) -> float:
    """A crop's part of an image's maps, see ``passes.crops``."""
    margin = sum(max(map(one_side, layer.kernel_size, layer.dilation, layer.padding))
                 for layer in layers)
    places = outputs / layers[-1].out_channels
    return (INNER + 2 * margin) ** 2 / max(1.0, places)
