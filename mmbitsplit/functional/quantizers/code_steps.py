"""Where real weights are between their codes."""

from torch import Tensor

from mmbitsplit.functional.patches import per_input, per_output, rows_to_weight, weight_rows
from mmbitsplit.structures import LayerGeometry


def in_steps(weight: Tensor, geometry: LayerGeometry, scale: Tensor,
             input_scale: Tensor | None = None) -> Tensor:
    """Real numbers in steps of a layer's codes; shape of the weight.

    Args:
        weight: As torch stores it for this kind of layer.
        geometry: Of the layer.
        scale: (out_channels,) real units a code step.
        input_scale: (1,) or (in_channels,), where the weight scale holds it, too: codes of
            inputs enter the product.
    """
    rows = weight_rows(weight, geometry)
    if input_scale is not None:
        rows = rows * per_input(input_scale, geometry).unsqueeze(1)
    return rows_to_weight(rows / scale.view(rows.shape[0], rows.shape[1], 1), geometry)


def code_positions(weight: Tensor, geometry: LayerGeometry, scale: Tensor,
                   input_scale: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """Where each weight would be without rounding, in code steps; shape of the weight.

    Args:
        weight, geometry, scale, input_scale: See ``in_steps``.
        offset: (out_channels,) added to every weight of a channel, in units of ``scale``.
    """
    steps = in_steps(weight, geometry, scale, input_scale)
    return steps if offset is None else steps - per_output(offset / scale, geometry)
