"""A float layer whose class takes steps of its own, and a quantized one between them."""

from typing import Any

from torch import Tensor

from mmbitsplit.models.layers.in_place_base import InPlaceModule, must_be_called
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer
from mmbitsplit.models.layers.steps import Steps
from mmbitsplit.structures import LayerGeometry, LayerPlan


class SteppedLayer(InPlaceModule):
    """A quantized layer between steps that the float layer's class takes in its own call.

    A layer of a model takes this class in place (``surgery/turned.py``); its product is a layer
    inside of it then.

    Args:
        before, after: The steps; empty ones leave the tensor as it is.
        layer: The quantized layer.
    """

    in_place_name = 'Stepped'

    before: Steps
    layer: QuantizedLayer
    after: Steps

    def __init__(self, before: Steps, layer: QuantizedLayer, after: Steps):
        super().__init__()
        self.begin(before, layer, after)

    def begin(self, before: Steps, layer: QuantizedLayer, after: Steps) -> None:
        """Gives a module without children these; see above."""
        self._modules.update(before=before, layer=layer, after=after)
        self.register_forward_pre_hook(must_be_called)

    def forward(self, input: Tensor) -> Tensor:
        return self.after(self.layer(self.before(input)))

    @property
    def geometry(self) -> LayerGeometry:
        """Of the product."""
        return self.layer.geometry

    @property
    def weight(self) -> Tensor:
        """For others to read: what the class multiplies by, dequantized."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """For others to read: what the class adds to the product."""
        return self.layer.bias

    def plan_row(self, plan: LayerPlan | None = None) -> dict[str, Any]:
        """See ``QuantizedLayer.plan_row``; with the steps."""
        return {**self.layer.plan_row(plan), 'before': self.before.describe(),
                'after': self.after.describe()}

    def extra_repr(self) -> str:
        return ''
