"""Surgery on a model: batch norms folded, layers swapped, solutions written."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from mmbitsplit.models.layers.geometry import layer_geometry
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer
from mmbitsplit.models.layers.stepped_layer import SteppedLayer
from mmbitsplit.models.layers.steps import Steps
from mmbitsplit.models.layers.streams import stream_qparams
from mmbitsplit.models.surgery.fold_bn import (
    fold_batch_norm,
    foldable_batch_norms,
    read_norm,
)
from mmbitsplit.models.surgery.modules import get_module, hand_over, set_module
from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.models.watch.layer_inside import LayerInside
from mmbitsplit.structures import BitPlan, FoldedNorm, LayerGeometry, QParams


@dataclass(frozen=True)
class PreparedModel:
    """A model with its layers swapped, still computing in float.

    Args:
        model: The model, changed in place.
        plan: Layers to solve, in execution order.
        layers: The swapped layers by name.
        folded: Batch norms folded away, with the layers that took them in.
        places: What stands where layers and batch norms stood, by name.
        originals: The layers and batch norms that stood there, as long as there is a way back.
        embeddings: The planned embeddings by name; they get codes where they are.
    """

    model: nn.Module
    plan: BitPlan
    layers: dict[str, QuantizedLayer]
    folded: dict[str, str]
    places: dict[str, nn.Module] = field(default_factory=dict)
    originals: dict[str, nn.Module] = field(default_factory=dict)
    embeddings: dict[str, nn.Embedding] = field(default_factory=dict)

    @functools.cached_property
    def products(self) -> dict[str, Product]:
        """Products of activations that are quantized, by name, in execution order."""
        return {plan.name: get_module(self.model, plan.name) for plan in self.plan.products}

    @property
    def sites(self) -> dict[str, QuantizedLayer | Product]:
        """Layers and products, by name."""
        return {**self.layers, **self.products}

    def stream_qparams(self, name: str) -> QParams | None:
        """How a residual stream is rounded, ``None`` where it is not (yet)."""
        layer = self.layers.get(name)
        return stream_qparams(get_module(self.model, name)) if layer is None \
            else layer.output_qparams

    def folded_norms(self) -> dict[str, FoldedNorm]:
        """What the folded batch norms were, by the layer that took each in.

        There as long as the way back to float is.
        """
        return {layer: read_norm(self.originals[norm]) for norm, layer in self.folded.items()
                if norm in self.originals}

    def put_back(self) -> None:
        """Makes the model the float model that it was."""
        for name, module in self.originals.items():
            if get_module(self.model, name) is not module:
                set_module(self.model, name, module)

    def release_float(self) -> None:
        """Gives the float model up: there is no way back from here, and its memory is free."""
        self.originals.clear()
        for layer in (*self.layers.values(), *self.embeddings.values()):
            layer.release_float()

    def put_in(self, names: Iterable[str]) -> None:
        """Puts some of the layers in, and folds the batch norms after them."""
        norms = {layer: norm for norm, layer in self.folded.items()}
        for name in names:
            set_module(self.model, name, self.places[name])
            if name in norms:
                set_module(self.model, norms[name], self.places[norms[name]])


def prepare(model: nn.Module, flow: DataFlow, plan: BitPlan) -> PreparedModel:
    """Folds batch norms and swaps in the planned layers; the model computes as before.

    Args:
        model: Float model in eval mode, changed in place.
        flow: What ``watcher.watch`` saw of it.
        plan: Layers to quantize, of those that were seen.
    """
    planned = {layer.name for layer in plan.layers}
    folded = {norm: layer for norm, layer in foldable_batch_norms(model, flow).items()
              if layer in planned}
    norm_of = {layer: norm for norm, layer in folded.items()}
    layers = {}
    for name in (layer.name for layer in plan.layers):
        layers[name] = _make_layer(
            get_module(model, name), flow.inside.get(name),
            get_module(model, norm_of[name]) if name in norm_of else None)
    places: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        inside = flow.inside.get(name)
        places[name] = layer if inside is None or not (inside.before or inside.after) \
            else SteppedLayer(Steps.of(inside.before), layer, Steps.of(inside.after))
        hand_over(get_module(model, name), places[name].train(False))
    for norm in folded:
        steps = flow.norm_steps.get(norm)
        places[norm] = Steps.of(steps) if steps else nn.Identity()
    prepared = PreparedModel(model, plan, layers, folded, places,
                             {name: get_module(model, name) for name in places},
                             {table.name: get_module(model, table.name)
                              for table in plan.embeddings})
    prepared.put_in(layers)
    return prepared


def planned_geometries(model: nn.Module, flow: DataFlow, plan: BitPlan,
                       ) -> dict[str, LayerGeometry]:
    """How inputs meet weights in each planned layer, padding inside its class taken in."""
    return {layer.name: flow.inside[layer.name].geometry if layer.name in flow.inside
            else layer_geometry(get_module(model, layer.name)) for layer in plan.layers}


def _make_layer(module: nn.Module, inside: LayerInside | None, norm: nn.Module | None,
                ) -> QuantizedLayer:
    """Makes the layer that stands for a float one and the batch norm behind it."""
    geometry = declared = layer_geometry(module)
    weight, bias = module.weight, module.bias
    if inside is not None:
        geometry, weight, bias = inside.geometry, inside.weight, inside.bias
    if norm is not None:
        weight, bias = fold_batch_norm(weight, bias, geometry, norm)
    return QuantizedLayer(geometry, weight, bias, None if geometry == declared else declared)
