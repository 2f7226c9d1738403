"""Where weights are between their codes, for learning that starts from a solver's codes."""

from torch import Tensor

from mmbitsplit.functional import per_input, per_output, rows_to_weight
from mmbitsplit.models import QuantizedLayer

# How far a position keeps from half a step, so that it rounds to its code.
CLEAR = 0.01


def positions_of(layer: QuantizedLayer) -> Tensor:
    """The float weight in steps of the codes, shape of the weight, less the offset."""
    geometry, quantizer = layer.geometry, layer.weight_quantizer
    rows = layer.float_rows()
    if layer.qparams is not None and layer.qparams.unit:  # weights carry the scales of the inputs
        rows = rows * per_input(layer.qparams.scale, geometry).unsqueeze(1)
    weight = rows_to_weight(rows, geometry)
    if quantizer.offset is not None:
        weight = weight - per_output(quantizer.offset, geometry)
    return weight / per_output(quantizer.scale, geometry)


def nearby(position: Tensor, codes: Tensor) -> Tensor:
    """Positions moved so near to codes that each rounds to its own.

    Args:
        position: In code steps.
        codes: Whole, same shape.
    """
    return codes + (position - codes).clamp(CLEAR - 0.5, 0.5 - CLEAR)
