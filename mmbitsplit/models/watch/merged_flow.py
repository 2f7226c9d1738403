"""What several runs of a model showed, taken together."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from mmbitsplit.models.layers.steps import NO_STEPS
from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.models.watch.layer_inside import LayerInside
from mmbitsplit.models.watch.product_calls import ProductCalls

# Of two runs, what differs between them rather than adds up.
_MOST = {'calls', 'norm_calls', 'stacks', 'output_sizes', 'input_sizes', 'output_rows',
         'live_blocks', 'peak_bytes'}
_APART = {'order', 'sites', 'products', 'norm_after', 'module_calls'}


def merge_flows(flows: Sequence[DataFlow]) -> DataFlow:
    """Joins what runs showed: whatever one of them contradicts does not hold.

    Readers, sources and whatever else was seen add up; of calls and sizes the most in a run are
    kept. A batch norm is after a layer only if it was so in every run, for all of its calls.

    Args:
        flows: At least one, the most important first: layers stand in its order.
    """
    if len(flows) == 1:
        return flows[0]
    merged = DataFlow(order=_order([flow.order for flow in flows]),
                      sites=_order([flow.sites for flow in flows]),
                      products=_products(flows),
                      norm_after=_norm_after(flows),
                      module_calls=[calls for flow in flows for calls in flow.module_calls])
    for item in fields(DataFlow):
        if item.name not in _APART:
            values = [getattr(flow, item.name) for flow in flows]
            setattr(merged, item.name, _most(values) if item.name in _MOST else _union(values))
    for name in merged.inside:
        inside = _same_inside([flow.inside.get(name) for flow in flows if name in flow.calls])
        if inside is None:
            merged.unlike_torch.setdefault(name, 'its class does something else on other batches')
        else:
            merged.inside[name] = inside
    for name, steps in merged.norm_steps.items():
        if not all(steps.same_as(flow.norm_steps.get(name, NO_STEPS)) for flow in flows
                   if name in flow.norm_calls):
            merged.norm_after[name] = None
    return merged


def _same_inside(seen: Sequence[LayerInside | None]) -> LayerInside | None:
    """What a class does in all runs, ``None`` where it differs."""
    first = seen[0]
    if first is None or any(other is None or not first.before.same_as(other.before)
                            or not first.after.same_as(other.after) for other in seen):
        return None
    geometries = tuple(geometry for geometry in first.geometries
                       if all(geometry in other.geometries for other in seen))
    return replace(first, geometries=geometries) if geometries else None


def _order(orders: Sequence[Sequence[str]]) -> list[str]:
    """Those of later runs stand after what came before them there."""
    merged = list(orders[0])
    for order in orders[1:]:
        place = 0
        for name in order:
            if name in merged:
                place = max(place, merged.index(name) + 1)
            else:
                merged.insert(place, name)
                place += 1
    return merged


def _products(flows: Sequence[DataFlow]) -> dict[str, ProductCalls]:
    merged: dict[str, ProductCalls] = {}
    for flow in flows:
        for name, calls in flow.products.items():
            merged[name] = merged[name].merged(calls) if name in merged else calls
    return merged


def _norm_after(flows: Sequence[DataFlow]) -> dict[str, str | None]:
    merged: dict[str, str | None] = {}
    for flow in flows:
        for norm, layer in flow.norm_after.items():
            if merged.setdefault(norm, layer) != layer:
                merged[norm] = None
    for flow in flows:
        for norm, layer in merged.items():
            if layer is not None and flow.calls.get(layer, 0) != flow.norm_calls.get(norm, 0):
                merged[norm] = None
    return merged


def _most(values: Sequence[Any]) -> Any:
    if not isinstance(values[0], Mapping):
        return max(values)
    merged: dict[str, Any] = {}
    for value in values:
        for name, own in value.items():
            if name not in merged or _size(own) > _size(merged[name]):
                merged[name] = own
    return merged


def _size(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return sum(value) if value and isinstance(value[0], int) else len(value)


def _union(values: Sequence[Any]) -> Any:
    """Sets, lists without repeats, and mappings of either; of other values the first."""
    first = values[0]
    if isinstance(first, set):
        return set().union(*values)
    if isinstance(first, list):
        return list(dict.fromkeys(item for value in values for item in value))
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _union([value[name] for value in values if name in value])
                for name in names}
    return first
