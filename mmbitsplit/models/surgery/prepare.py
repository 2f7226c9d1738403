"""Surgery on a model: batch norms folded, layers quantized in place, solutions written."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from mmbitsplit.models.layers.geometry import layer_geometry
from mmbitsplit.models.layers.outside_view import OutsideView
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer
from mmbitsplit.models.layers.stepped_layer import SteppedLayer
from mmbitsplit.models.layers.steps import NO_STEPS, IdentityNorm, StepList, Steps
from mmbitsplit.models.layers.streams import all_stream_qparams, is_rounded, stream_qparams
from mmbitsplit.models.opening import release_originals
from mmbitsplit.models.surgery.fold_bn import (
    fold_batch_norm,
    foldable_batch_norms,
    norm_affine,
    read_norm,
)
from mmbitsplit.models.surgery.modules import get_module
from mmbitsplit.models.surgery.turned import Turned
from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.structures import BitPlan, FoldedNorm, LayerGeometry, QParams


@dataclass(frozen=True)
class PreparedModel:
    """A model whose layers can be quantized where they stand, still computing in float.

    Args:
        model: The model, changed in place.
        plan: Layers to solve, in execution order.
        layers: The layers by name: the model's own modules, or the product inside of one whose
            class takes steps of its own.
        folded: Batch norms folded away, with the layers that took them in.
        norms: What these were, by the layer that took each in.
        turned: Layers and batch norms by name, with the way back; empty once there is none.
        embeddings: The planned embeddings by name; they get codes where they are.
    """

    model: nn.Module
    plan: BitPlan
    layers: dict[str, QuantizedLayer]
    folded: dict[str, str]
    norms: dict[str, FoldedNorm] = field(default_factory=dict)
    turned: dict[str, Turned] = field(default_factory=dict)
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

    def all_stream_qparams(self, name: str) -> tuple[QParams, ...]:
        """Those of all widths of a residual stream, the widest first; none where it is not rounded
        (yet)."""
        layer = self.layers.get(name)
        if layer is not None:
            return () if layer.output_quantizer is None else layer.output_quantizer.solutions()
        module = get_module(self.model, name)
        return all_stream_qparams(module) if is_rounded(module) else ()

    def is_in(self, name: str) -> bool:
        """Whether a layer or folded batch norm is not the float module that it was."""
        return self.turned[name].inside

    def put_back(self) -> None:
        """Makes the model the float model that it was."""
        for turned in self.turned.values():
            turned.put_back()

    def put_in(self, names: Iterable[str]) -> None:
        """Takes ``put_back`` back for some layers and the batch norms that they have taken in."""
        norms = {layer: norm for norm, layer in self.folded.items()}
        for name in names:
            self.turned[name].put_in()
            if name in norms:
                self.turned[norms[name]].put_in()

    def stay(self) -> None:
        """Gives up the way back to the float modules, and frees what they were."""
        self.turned.clear()

    def release_float(self) -> None:
        """Gives the float model up, the weights beside codes too: their memory is free."""
        self.stay()
        for layer in (*self.layers.values(), *self.embeddings.values()):
            layer.release_float()
        release_originals(self.model)


def prepare(model: nn.Module, flow: DataFlow, plan: BitPlan) -> PreparedModel:
    """Folds batch norms and makes the planned layers ready for codes; it computes as before.

    Args:
        model: Float model in eval mode, changed in place.
        flow: What ``watcher.watch`` saw of it.
        plan: Layers to quantize, of those that were seen.
    """
    planned = {layer.name for layer in plan.layers}
    folded = {norm: layer for norm, layer in foldable_batch_norms(model, flow).items()
              if layer in planned}
    norm_of = {layer: get_module(model, norm) for norm, layer in folded.items()}
    norms = {name: read_norm(norm) for name, norm in norm_of.items()}
    layers, turned = {}, {}
    for name in (layer.name for layer in plan.layers):
        turned[name] = _turn(get_module(model, name), name, flow, norm_of.get(name))
        module = turned[name].module
        layers[name] = module.layer if isinstance(module, SteppedLayer) else module
    for norm, layer in folded.items():
        turned[norm] = _turn_norm(norm_of[layer], flow.norm_steps.get(norm, NO_STEPS))
    return PreparedModel(model, plan, layers, folded, norms, turned, {
        table.name: get_module(model, table.name) for table in plan.embeddings})


def planned_geometries(model: nn.Module, flow: DataFlow, plan: BitPlan,
                       ) -> dict[str, LayerGeometry]:
    """How inputs meet weights in each planned layer, padding inside its class taken in."""
    return {layer.name: flow.inside[layer.name].geometry if layer.name in flow.inside
            else layer_geometry(get_module(model, layer.name)) for layer in plan.layers}


def _turn_norm(module: nn.Module, left: StepList) -> Turned:
    """Makes a batch norm do only what its class does after normalizing."""
    return Turned(module, IdentityNorm, lambda norm: norm.begin(left.steps, left.constants))


def _turn(module: nn.Module, name: str, flow: DataFlow, norm: nn.Module | None) -> Turned:
    """Makes a float layer ready for codes, with the batch norm behind it."""
    geometry = declared = layer_geometry(module)
    weight, bias, has_bias = module.weight, module.bias, module.bias is not None
    inside = flow.inside.get(name)
    if inside is not None:
        geometry, weight, bias = inside.geometry, inside.weight, inside.bias
    outside = OutsideView(has_bias)
    if norm is not None:
        weight, bias = fold_batch_norm(weight, bias, geometry, norm)
        outside = OutsideView(has_bias, *norm_affine(norm), stored=name in flow.also_read)
    parts = geometry, weight, bias, None if geometry == declared else declared, outside
    if inside is None or not (inside.before or inside.after):
        return Turned(module, QuantizedLayer, lambda layer: layer.begin(*parts))
    product = QuantizedLayer(*parts).train(False)
    return Turned(module, SteppedLayer, lambda layer: layer.begin(
        Steps.of(inside.before), product, Steps.of(inside.after)))
