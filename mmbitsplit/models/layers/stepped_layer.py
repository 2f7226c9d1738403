"""What stands in the place of a float layer whose class takes steps of its own; rows of places."""

from typing import Any

from torch import Tensor, nn

from mmbitsplit.models.layers.layer_state import geometry_of_row
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer, must_be_called
from mmbitsplit.models.layers.steps import Steps
from mmbitsplit.structures import LayerGeometry, LayerPlan


class SteppedLayer(nn.Module):
    """A quantized layer between steps that the float layer's class takes in its own call.

    What is asked of the float layer is answered by the quantized one.

    Args:
        before, after: The steps; empty ones leave the tensor as it is.
        layer: The quantized layer.
    """

    def __init__(self, before: Steps, layer: QuantizedLayer, after: Steps):
        super().__init__()
        self.before, self.layer, self.after = before, layer, after
        self.register_forward_pre_hook(must_be_called)

    def forward(self, input: Tensor) -> Tensor:
        return self.after(self.layer(self.before(input)))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'layer':
                raise
            return getattr(self.layer, name)


def describe_place(place: QuantizedLayer | SteppedLayer, plan: LayerPlan) -> dict[str, Any]:
    """The row of a checkpoint's plan for what stands in a layer's place.

    Args:
        place: The layer, with the steps around it where there are any.
        plan: Of the layer.
    """
    if isinstance(place, QuantizedLayer):
        return place.plan_row(plan)
    return {**place.layer.plan_row(plan), 'before': place.before.describe(),
            'after': place.after.describe()}


def place_of_row(row: dict[str, Any], declared: LayerGeometry, weight: Tensor,
                 bias: Tensor | None, like: Tensor) -> QuantizedLayer | SteppedLayer:
    """Makes what a row describes, ready for its state.

    Args:
        row: From a checkpoint.
        declared: What the attributes of the float layer say.
        weight, bias: Of the float layer.
        like: Says device and dtype of constants in the steps.

    Raises:
        ValueError: The row is of another layer; says where they differ.
    """
    geometry = geometry_of_row(row, declared)
    layer = QuantizedLayer(geometry, weight, bias, declared if 'class_geometry' in row else None)
    layer.expect(row)
    if 'before' not in row:
        return layer
    return SteppedLayer(Steps.from_description(row['before'], like), layer,
                        Steps.from_description(row['after'], like))
