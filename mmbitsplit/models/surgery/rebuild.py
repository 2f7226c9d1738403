"""Describes the surgery of a model in plain values, and repeats it on a fresh one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.models.layers.geometry import layer_geometry
from mmbitsplit.models.layers.layer_state import geometry_of_row
from mmbitsplit.models.layers.outside_view import OutsideView
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer
from mmbitsplit.models.layers.stepped_layer import SteppedLayer
from mmbitsplit.models.layers.steps import IdentityNorm, Steps
from mmbitsplit.models.layers.streams import blank_stream, describe_stream, rounded_streams
from mmbitsplit.models.opening import describe_opened, release_originals, reopen
from mmbitsplit.models.surgery.embedding import expect_embedding, geometry_of_table
from mmbitsplit.models.surgery.modules import get_module
from mmbitsplit.models.surgery.prepare import PreparedModel
from mmbitsplit.models.surgery.turned import Turned

_NOTE = '_mmbitsplit_surgery'  # attribute of a quantized model
_USE = 'Use the config written beside the checkpoint, or the float model that was quantized.'


def describe(prepared: PreparedModel) -> dict[str, Any]:
    """Returns what ``rebuild`` needs, in plain values."""
    rows = {plan.name: get_module(prepared.model, plan.name).plan_row(plan)
            for plan in prepared.plan.layers}
    norms = {name: get_module(prepared.model, name) for name in prepared.folded}
    steps = {name: norm.describe() for name, norm in norms.items() if norm.steps}
    streams = {name: describe_stream(module) for name, module in rounded_streams(prepared.model)}
    products = {plan.name: prepared.products[plan.name].plan_row(plan)
                for plan in prepared.plan.products}
    tables = {plan.name: prepared.embeddings[plan.name].plan_row(plan)
              for plan in prepared.plan.embeddings}
    opened = describe_opened(prepared.model)
    return {'layers': rows, 'folded': sorted(prepared.folded),
            **({'opened': opened} if opened else {}),
            **({'embeddings': tables} if tables else {}),
            **({'folded_steps': steps} if steps else {}),
            **({'streams': streams} if streams else {}),
            **({'products': products} if products else {})}


def note_surgery(model: nn.Module, description: dict[str, Any]) -> None:
    """Notes on a model what ``describe`` says of it; copies and pickles of the model have it."""
    vars(model)[_NOTE] = description


def surgery_of(model: nn.Module) -> dict[str, Any] | None:
    """What was noted on a model (not on its parts), ``None`` where it was not quantized."""
    return vars(model).get(_NOTE)


def rebuild(model: nn.Module, description: dict[str, Any]) -> None:
    """Repeats the surgery on a freshly built float model, ready to load quantized state.

    The description is noted on the model.

    Raises:
        ValueError: The model lacks a layer of the description, or it is of another kind; the
            model is as it was.
    """
    opened = reopen(model, description.get('opened', {}))
    try:
        _rebuild(model, description)
    except ValueError:
        opened.close()
        raise
    release_originals(model)
    note_surgery(model, description)


def _rebuild(model: nn.Module, description: dict[str, Any]) -> None:
    names = dict(model.named_modules())
    tables = description.get('embeddings', {})
    for name in (*description['folded'], *description['layers'], *tables,
                 *description.get('streams', ()), *description.get('products', ())):
        if name not in names:
            raise ValueError(f"The checkpoint's layer '{name}' is not in the model: it belongs "
                             f'to another architecture. {_USE}')
    for name in description.get('products', ()):
        if not isinstance(names[name], Product):
            raise ValueError(f"'{name}' is a product of activations in the checkpoint and a "
                             f'{type(names[name]).__name__} in the model: it belongs to another '
                             f'architecture. {_USE}')
    like = next(model.parameters(), torch.zeros(0))
    begins: list[Callable[[], Any]] = []  # nothing is changed while something may be refused
    for name, row in (*description['layers'].items(), *tables.items()):
        try:
            if name in tables:
                geometry_of_table(row, names[name])
                begins.append(partial(expect_embedding, names[name], row))
            else:
                begins.append(_layer_of_row(row, names[name], like))
        except ValueError as error:
            raise ValueError(f"Layer '{name}': {error} {_USE}") from error
    for name in description['folded']:
        steps = Steps.from_description(description.get('folded_steps', {}).get(
            name, {'steps': [], 'constants': []}), like)
        begins.append(partial(_turn, names[name], IdentityNorm, steps.steps, steps.constants()))
    for begin in begins:
        begin()
    for name, limits in description.get('streams', {}).items():
        blank_stream(get_module(model, name), **limits)
    for name, row in description.get('products', {}).items():
        get_module(model, name).expect(row)


def _layer_of_row(row: dict[str, Any], module: nn.Module, like: Tensor) -> Callable[[], None]:
    """What makes a layer ready for the state that a row describes.

    Args:
        row: From a checkpoint.
        module: The float layer.
        like: Says device and dtype of constants in the steps.

    Raises:
        ValueError: The row is of another layer; says where they differ.
    """
    declared = layer_geometry(module)
    geometry = geometry_of_row(row, declared)
    channels = torch.ones(geometry.out_channels) if row.get('norm') else None
    parts = (geometry, module.weight, module.bias,
             declared if 'class_geometry' in row else None,
             OutsideView(module.bias is not None, channels, channels, stored=True))
    if 'before' not in row:
        return lambda: _turn(module, QuantizedLayer, *parts).expect(row)
    steps = [Steps.from_description(row[side], like) for side in ('before', 'after')]

    def begin() -> None:
        product = QuantizedLayer(*parts)
        product.expect(row)
        _turn(module, SteppedLayer, steps[0], product, steps[1])
    return begin


def _turn(module: nn.Module, mixin: type, *parts: Any) -> Any:
    """Turns a module for good, to begin with some parts."""
    Turned(module, mixin, lambda turned: turned.begin(*parts))
    return module.train(False)
