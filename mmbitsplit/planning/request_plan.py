"""Turns a request into a plan: what is done with each layer that was watched."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from mmbitsplit.methods import build_method
from mmbitsplit.models.layers.geometry import (
    holds_layers,
    layer_geometry,
    layer_kind,
    takes_codes,
)
from mmbitsplit.models.opening import may_be_opened
from mmbitsplit.models.surgery.fold_bn import foldable_batch_norms
from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.models.watch.roles import after_first, layer_role
from mmbitsplit.planning.costs import multiplications
from mmbitsplit.planning.embedding_plan import plan_embeddings
from mmbitsplit.planning.first_and_last import settings_of_role
from mmbitsplit.planning.given_plan import (
    check_given,
    check_given_names,
    with_given,
)
from mmbitsplit.planning.model_checks import check_left, check_model, check_reached
from mmbitsplit.planning.output_plan import plan_outputs
from mmbitsplit.planning.product_plan import (
    BY_PLAN,
    check_given_products,
    float_product,
    keeps_product,
    multiplication_shares,
    plan_product,
    product_names,
)
from mmbitsplit.planning.request_rules import left_in_float, matches
from mmbitsplit.planning.several_widths import with_widths
from mmbitsplit.planning.stream_plan import plan_streams
from mmbitsplit.spelling import did_you_mean, nearest
from mmbitsplit.structures import (
    ActivationSpec,
    BitPlan,
    FloatRemainder,
    LayerPlan,
    ProductPlan,
    QuantSpec,
    WeightSpec,
    merge,
)

Settings = TypeVar('Settings', WeightSpec, ActivationSpec)
SHOWN = 12  # names in an error
NOT_CALLED = 'not called by what was watched'
UNREACHED = f"no calibration image reaches it (calibration.unreached='float'), {NOT_CALLED}"


def make_plan(model: nn.Module, flow: DataFlow, spec: QuantSpec,
              folded: dict[str, str] | None = None) -> BitPlan:
    """Decides for every layer whether and how it is quantized.

    Args:
        model: The float model.
        flow: Its data flow.
        spec: The request.
        folded: Batch norms that can be folded, with their layers; found when not given.

    Raises:
        ValueError: A layer of a supported kind was never called, an override matches nothing,
            or ``scope`` names no part of the model.
    """
    check_request(model, spec, {call.module for call in flow.closed_calls if call.module})
    if folded is None:
        folded = foldable_batch_norms(model, flow)
    modules = dict(model.named_modules())
    total = sum(p.numel() for p in model.parameters()) or 1
    never_called = _never_called(modules, flow, spec)
    layers, kept = [], []
    parts = _layer_parts(modules)

    def keep(name: str, reason: str, requested: bool = False) -> None:
        size = sum(p.numel() for part in (name, *parts.get(name, ()))
                   for p in modules[part].parameters(recurse=False))
        kept.append(FloatRemainder(name, type(modules[name]).__name__, reason, size,
                                   size / total, requested))

    for name in flow.order:
        if name in flow.unlike_torch:
            keep(name, flow.unlike_torch[name])
        elif name in flow.read_elsewhere:
            keep(name, _read_elsewhere(name, flow))
        elif reason := left_in_float(name, spec):
            keep(name, reason, requested=True)
        else:
            layers.append(plan_layer(name, layer_role(name, flow), spec, after_first(name, flow)))
    for name, reason in never_called.items():
        keep(name, reason, requested=bool(left_in_float(name, spec)))
    counted = {part for below in parts.values() for part in below}  # with their layers
    tables = plan_embeddings(model, flow, spec, layers, counted)
    layers = [*tables.layers]
    for name, (reason, requested) in tables.kept.items():
        keep(name, reason, requested)
    for name, reason in _no_layers(modules, flow, folded, {layer.name for layer in layers}):
        if name not in counted:
            keep(name, reason)
    kept += _foreign_weights(flow, total)
    products, float_products = _plan_products(flow, spec)
    kept += float_products
    kept += _closed_calls(flow, {part.name for part in kept})
    check_given(spec, kept)
    check_left(layers, kept, f"scope='{spec.scope}' and overrides say which layers are quantized.")
    shares = multiplication_shares(count_multiplications(model, flow))
    plan = BitPlan(plan_outputs(layers, model, flow, folded, spec.plan), tuple(
        replace(part, multiplications=shares.get(part.name)) for part in kept), products=products,
        embeddings=tables.embeddings)
    return plan_streams(plan, flow, folded, spec.plan,
                        several=build_method(spec.method).solves == 'layer')


def _foreign_weights(flow: DataFlow, total: int) -> list[FloatRemainder]:
    """Weights that layers of no module multiply by; ``total`` is of the model's parameters."""
    return [FloatRemainder(
        f'{weight.inside}.<{weight.operation}>'.lstrip('.'), 'Tensor', 'a weight that no module of '
        'the model holds, such as that of layers in a Python list (use nn.ModuleList)',
        weight.num_weights, weight.num_weights / total) for weight in flow.foreign_weights]


def _closed_calls(flow: DataFlow, known: Collection[str]) -> list[FloatRemainder]:
    """Calls that multiply and were not opened; a Conv3d is one with the call inside it."""
    return [FloatRemainder(f'{call.module or ""}.<{call.function}>'.lstrip('.'), 'call',
                           call.reason, 0, 0.0) for call in flow.closed_calls
            if call.module not in known]


def _plan_products(flow: DataFlow, spec: QuantSpec,
                   ) -> tuple[tuple[ProductPlan, ...], list[FloatRemainder]]:
    """Plans of the products that were seen, and those that stay float."""
    planned, kept = [], []
    for name in flow.products:
        keeps = keeps_product(name, spec)
        reason = left_in_float(name, spec) if keeps is None else BY_PLAN if keeps else ''
        requested = bool(reason)
        if not reason:
            activation = _overridden(name, spec.activation, 'activation', spec)
            plan = plan_product(name, flow.products[name], activation, spec)
            if isinstance(plan, ProductPlan):
                planned.append(plan)
                continue
            reason = plan
        kept.append(float_product(name, reason, requested))
    return tuple(planned), kept


def count_multiplications(model: nn.Module, flow: DataFlow) -> dict[str, int]:
    """How many multiplications each layer and product of a float model makes, as it was watched."""
    geometries = {name: flow.inside[name].geometry if name in flow.inside
                  else layer_geometry(model.get_submodule(name)) for name in flow.order}
    return {**multiplications(flow, geometries),
            **{name: sum(calls.multiplications) for name, calls in flow.products.items()}}


def _no_layers(modules: dict[str, nn.Module], flow: DataFlow, folded: dict[str, str],
               planned: set[str]) -> Iterator[tuple[str, str]]:
    """Names of the modules with weights that are no layers, and why they stay float."""
    for name, module in modules.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if name in flow.norm_calls and folded.get(name) not in planned:
                yield name, ('batch norm of a layer that stays float' if name in folded
                             else flow.unlike_torch.get(
                                 name, 'batch norm that no layer could take in exactly'))
        elif layer_kind(module) is None and not isinstance(
                module, (nn.Embedding, nn.EmbeddingBag)) and any(
                p.dim() > 1 for p in module.parameters(recurse=False)):
            yield name, ('holds layers of its own, which are quantized instead'
                         if holds_layers(module) else 'kind of layer that is not supported')


def _layer_parts(modules: dict[str, nn.Module]) -> dict[str, list[str]]:
    """Modules below each layer that are no layers: they make up its weight, say, or normalize."""
    parts: dict[str, list[str]] = {}
    for name in modules:
        above = name
        while above and layer_kind(modules[name]) is None:
            above = above.rpartition('.')[0]
            if layer_kind(modules[above]) is not None:
                parts.setdefault(above, []).append(name)
                break
    return parts


def check_request(model: nn.Module, spec: QuantSpec, closed: Collection[str] | None = None,
                  ) -> None:
    """Raises ``ValueError`` for what no calibration can mend.

    A model that is quantized already, a trace or without layers, a scope, an override or a given
    plan that names nothing in the model, and layers whose weights are not float32, or not finite.

    Args:
        model: Float model.
        spec: The request.
        closed: Names of modules whose own calls stay closed. ``None`` where the model's calls are
            not opened yet: names of what opening may put into it are let pass then.
    """
    check_model(model)
    check_given_names(model, spec, opened=closed is not None)
    check_given_products(model, spec, opened=closed is not None)
    _check_scope(model, spec.scope)
    _check_overrides(model, spec, closed)
    _check_weights(model, spec)


def layers_to_find(model: nn.Module, spec: QuantSpec) -> set[str]:
    """Names of the layers that a request is about, whether they are called or not."""
    return {name for name, module in model.named_modules()
            if layer_kind(module) and not left_in_float(name, spec)}


def sites_to_find(model: nn.Module, spec: QuantSpec) -> set[str]:
    """The same with the products of activations that it is about."""
    return layers_to_find(model, spec) | {
        name for name in product_names(model)
        if spec.products is not None and not left_in_float(name, spec)}


def modules_left_closed(model: nn.Module, spec: QuantSpec) -> set[str]:
    """Names of the modules whose own calls are not opened: outside of the scope, or skipped."""
    return {name for name, _ in model.named_modules() if left_in_float(name, spec)}


def plan_layer(name: str, role: str, spec: QuantSpec, reads_first: bool = False) -> LayerPlan:
    """The plan of one layer: settings of its role, then overrides, then the given plan.

    Args:
        name: Of the layer.
        role: See ``layer_role``.
        spec: The request.
        reads_first: Whether its input comes from first layers alone.
    """
    weight, activation = settings_of_role(role, spec, reads_first)
    layer = with_given(LayerPlan(name, _overridden(name, weight, 'weight', spec),
                                 _overridden(name, activation, 'activation', spec), role), spec)
    return with_widths(layer, spec)


def _overridden(name: str, settings: Settings, part: str, spec: QuantSpec) -> Settings:
    """Settings of a layer or product with what overrides say of its name."""
    for index, override in enumerate(spec.overrides):
        if matches(name, override.match):
            settings = merge(settings, getattr(override, part),
                             f'quantization.overrides[{index}].{part}')
    return settings


def _check_scope(model: nn.Module, scope: str) -> None:
    children = [name for name, _ in model.named_children()]
    if scope == 'all':
        return
    for part in scope.split('+'):
        if part not in children:
            raise ValueError(f"scope='{scope}': the model has no part '{part}'; "
                             f'{nearest(part, ["all", *children])}.')


def _check_overrides(model: nn.Module, spec: QuantSpec, closed: Collection[str] | None) -> None:
    layers = [name for name, module in model.named_modules() if takes_codes(module)]
    layers += product_names(model)
    modules = [name for name, _ in model.named_modules() if name]
    for index, override in enumerate(spec.overrides):
        what, names = ('module', modules) if override.unit == 'module' else ('layer', layers)
        if override.skip:
            names = [*names, *(modules if closed is None else closed)]
        if not any(matches(name, override.match) for name in names) \
                and not (closed is None and may_be_opened(override.match)):
            known = list(dict.fromkeys(names))
            hint = did_you_mean(override.match, known, alike=0.5)
            shown = ', '.join(known[:SHOWN]) + (', ...' if len(known) > SHOWN else '')
            raise ValueError(f"quantization.overrides[{index}].match='{override.match}' matches "
                             f'no {what}; {hint} Allowed: {shown}.'.replace(';  ', '; '))


def _check_weights(model: nn.Module, spec: QuantSpec) -> None:
    for name, module in model.named_modules():
        if not takes_codes(module) or left_in_float(name, spec):
            continue
        weight = module.weight.detach()
        if weight.dtype != torch.float32:
            raise ValueError(f"Layer '{name}' has weights of {weight.dtype}, calibration "
                             'computes in torch.float32: call model.float() before, and give '
                             'inputs of that type.')
        if bad := int((~torch.isfinite(weight)).sum()):
            raise ValueError(f"Layer '{name}' has {bad} of {weight.numel()} weights that are NaN "
                             'or infinite. Check the checkpoint, or leave the layer in float '
                             f"with overrides=[dict(match='{name}', skip=True)].")



def _never_called(modules: dict[str, nn.Module], flow: DataFlow, spec: QuantSpec,
                  ) -> dict[str, str]:
    """Why layers that no image reached stay float; raises where the request does not say so."""
    layers = [name for name, module in modules.items() if layer_kind(module)]
    reasons = {}
    for name in layers:
        if name not in flow.calls:
            if reason := left_in_float(name, spec):
                reasons[name] = f'{reason}, {NOT_CALLED}'
            else:
                read = name in flow.read_elsewhere or name in flow.also_read
                reasons[name] = _read_elsewhere(name, flow) if read else \
                    UNREACHED if spec.calibration.unreached == 'float' else ''
    check_reached([name for name, reason in reasons.items() if not reason], layers)
    return reasons


def _read_elsewhere(name: str, flow: DataFlow) -> str:
    operation = flow.read_elsewhere.get(name) or flow.also_read[name]
    return (f"its weight is read outside of its own calls (by '{operation}')"
            f'{"" if name in flow.calls else ", which never come"}')
