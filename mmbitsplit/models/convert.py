"""Surgery on a model: batch norms folded, layers swapped, solutions written."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmbitsplit.models.dataflow import DataFlow
from mmbitsplit.models.fold_bn import fold_batch_norm, foldable_batch_norms
from mmbitsplit.models.geometry import layer_geometry
from mmbitsplit.models.quantized_layers import QuantizedLayer
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
    """

    model: nn.Module
    plan: BitPlan
    layers: dict[str, QuantizedLayer]
    folded: dict[str, str]


def prepare(model: nn.Module, flow: DataFlow, spec: QuantSpec,
            check: Callable[[dict[str, QuantizedLayer]], None] = lambda layers: None,
            ) -> PreparedModel:
    """Plans, folds batch norms and swaps in quantizable layers; the model computes as before.

    Args:
        model: Float model in eval mode, changed in place.
        flow: What ``dataflow.watch`` saw of it.
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
        module = get_module(model, name)
        weight, bias = module.weight, module.bias
        if name in norm_of:
            weight, bias = fold_batch_norm(module, get_module(model, norm_of[name]))
        layers[name] = QuantizedLayer(layer_geometry(module), weight, bias)
    check(layers)
    for norm in folded:
        set_module(model, norm, nn.Identity())
    for name, layer in layers.items():
        _swap(model, name, layer)
    return PreparedModel(model, plan, layers, folded)


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
    return {'layers': rows, 'folded': sorted(prepared.folded)}


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
    layers = {}
    for name, row in description['layers'].items():
        module = names[name]
        try:
            layers[name] = QuantizedLayer(layer_geometry(module), module.weight, module.bias)
            layers[name].expect(row)
        except ValueError as error:
            raise ValueError(f"Layer '{name}': {error} Use the config written beside the "
                             'checkpoint.') from error
    for name, layer in layers.items():
        _swap(model, name, layer)
    for name in description['folded']:
        set_module(model, name, nn.Identity())


def _swap(model: nn.Module, name: str, layer: QuantizedLayer) -> QuantizedLayer:
    hand_over(get_module(model, name), layer)
    set_module(model, name, layer)
    return layer.train(False)


def quantized_layers(model: nn.Module) -> Iterable[tuple[str, QuantizedLayer]]:
    """Yields the swapped layers of a model with their names."""
    return ((name, module) for name, module in model.named_modules()
            if isinstance(module, QuantizedLayer))


