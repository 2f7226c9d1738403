"""Writes solutions into layers, and finds the layers that hold them."""

from collections.abc import Iterator, Mapping

from torch import nn

from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer
from mmbitsplit.models.layers.stepped_layer import SteppedLayer
from mmbitsplit.structures import LayerSolution


def apply(layer: QuantizedLayer, solution: LayerSolution) -> None:
    """Writes a solution into its layer: the only place that sets quantized weights."""
    layer.install(solution)


def quantized_products(model: nn.Module) -> Iterator[tuple[str, Product]]:
    """Yields the products of activations of a model whose inputs are rounded, by name."""
    return ((name, module) for name, module in model.named_modules()
            if isinstance(module, Product) and module.quantized)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Yields the layers of a model that have been quantized in place, with their names."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, QuantizedLayer):
            yield layer_name(name, modules), module


def layer_name(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The name of a quantized layer in the float model, from its name and all modules by name."""
    parent = name.rpartition('.')[0]
    return parent if isinstance(modules.get(parent), SteppedLayer) else name
