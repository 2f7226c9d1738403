"""Writes solutions into layers, and finds the layers that hold them."""

from collections.abc import Iterator

from torch import nn

from mmbitsplit.models.layers.quantized_layers import QuantizedLayer, SteppedLayer
from mmbitsplit.models.surgery.modules import get_module, set_module
from mmbitsplit.structures import LayerSolution


def apply(layer: QuantizedLayer, solution: LayerSolution) -> None:
    """Writes a solution into its layer: the only place that sets quantized weights."""
    layer.install(solution)


def swap_layer(model: nn.Module, name: str, layer: QuantizedLayer) -> None:
    """Puts another quantized layer where one is, between the same steps."""
    place = get_module(model, name)
    if isinstance(place, SteppedLayer):
        place.layer = layer
    else:
        set_module(model, name, layer)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Yields the swapped layers of a model with their names in the float model."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, QuantizedLayer):
            parent = name.rpartition('.')[0]
            yield parent if isinstance(modules.get(parent), SteppedLayer) else name, module
