"""Surgery on a model: batch norms folded, layers swapped, solutions written."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmbitsplit.models.dataflow import DataFlow
from mmbitsplit.models.fold_bn import fold_batch_norm, foldable_batch_norms
from mmbitsplit.models.geometry import layer_geometry
from mmbitsplit.models.layer_inside import LayerInside
from mmbitsplit.models.layer_steps import Steps
from mmbitsplit.models.quantized_layers import QuantizedLayer, SteppedLayer, layer_of_row
from mmbitsplit.models.roles import make_plan
from mmbitsplit.models.surgery import get_module, hand_over, set_module
from mmbitsplit.structures import BitPlan, LayerSolution, QuantSpec


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
    """

    model: nn.Module
    plan: BitPlan
    layers: dict[str, QuantizedLayer]
    folded: dict[str, str]
    places: dict[str, nn.Module] = field(default_factory=dict)
    originals: dict[str, nn.Module] = field(default_factory=dict)

    def put_back(self) -> None:
        """Makes the model the float model that it was."""
        for name, module in self.originals.items():
            if get_module(self.model, name) is not module:
                set_module(self.model, name, module)

    def release_float(self) -> None:
        """Gives the float model up: there is no way back from here, and its memory is free."""
        self.originals.clear()
        for layer in self.layers.values():
            layer.release_float()

    def put_in(self, names: Iterable[str]) -> None:
        """Puts some of the layers in, and folds the batch norms after them."""
        norms = {layer: norm for norm, layer in self.folded.items()}
        for name in names:
            set_module(self.model, name, self.places[name])
            if name in norms:
                set_module(self.model, norms[name], self.places[norms[name]])


def prepare(model: nn.Module, flow: DataFlow, spec: QuantSpec,
            check: Callable[[dict[str, QuantizedLayer]], None] = lambda layers: None,
            ) -> PreparedModel:
    """Plans, folds batch norms and swaps in quantizable layers; the model computes as before.

    Args:
        model: Float model in eval mode, changed in place.
        flow: What ``watcher.watch`` saw of it.
        spec: The request.
        check: Told the layers before anything is changed; may refuse.

    Raises:
        ValueError: See ``roles.make_plan``.
    """
    folded = foldable_batch_norms(model, flow)
    plan = make_plan(model, flow, spec, folded)
    planned = {layer.name for layer in plan.layers}
    folded = {norm: layer for norm, layer in folded.items() if layer in planned}
    norm_of = {layer: norm for norm, layer in folded.items()}
    layers = {}
    for name in (layer.name for layer in plan.layers):
        layers[name] = _make_layer(
            get_module(model, name), flow.inside.get(name),
            get_module(model, norm_of[name]) if name in norm_of else None)
    check(layers)
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
                             {name: get_module(model, name) for name in places})
    prepared.put_in(layers)
    return prepared


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


def apply(layer: QuantizedLayer, solution: LayerSolution) -> None:
    """Writes a solution into its layer: the only place that sets quantized weights."""
    layer.install(solution)


def describe(prepared: PreparedModel) -> dict[str, Any]:
    """Returns what ``rebuild`` needs, in plain values; role and mode are for readers."""
    rows = {}
    for plan in prepared.plan.layers:
        rows[plan.name] = row = {**prepared.layers[plan.name].plan_row(), 'role': plan.role}
        if row['input'] is not None:
            row['input']['mode'] = plan.activation.mode
        place = get_module(prepared.model, plan.name)
        if isinstance(place, SteppedLayer):
            row['before'], row['after'] = place.before.describe(), place.after.describe()
    steps = {name: module.describe() for name in prepared.folded
             if isinstance(module := get_module(prepared.model, name), Steps)}
    return {'layers': rows, 'folded': sorted(prepared.folded),
            **({'folded_steps': steps} if steps else {})}


def rebuild(model: nn.Module, description: dict[str, Any]) -> None:
    """Repeats the surgery on a freshly built float model, ready to load quantized state.

    Raises:
        ValueError: The model lacks a layer of the description, or it is of another kind; the
            model is as it was.
    """
    names = dict(model.named_modules())
    for name in (*description['folded'], *description['layers']):
        if name not in names:
            raise ValueError(f"The checkpoint's layer '{name}' is not in the model: it belongs "
                             'to another architecture. Use the config written beside it.')
    places: dict[str, nn.Module] = {}
    like = next(model.parameters(), torch.zeros(0))
    for name, row in description['layers'].items():
        module = names[name]
        try:
            layer = layer_of_row(row, layer_geometry(module), module.weight, module.bias)
            places[name] = layer if 'before' not in row else SteppedLayer(
                Steps.from_description(row['before'], like), layer,
                Steps.from_description(row['after'], like))
        except ValueError as error:
            raise ValueError(f"Layer '{name}': {error} Use the config written beside the "
                             'checkpoint.') from error
    steps = {name: Steps.from_description(value, like)
             for name, value in description.get('folded_steps', {}).items()}
    for name, place in places.items():
        _swap(model, name, place)
    for name in description['folded']:
        set_module(model, name, steps.get(name, nn.Identity()))


def _swap(model: nn.Module, name: str, place: nn.Module) -> None:
    hand_over(get_module(model, name), place)
    set_module(model, name, place.train(False))


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
