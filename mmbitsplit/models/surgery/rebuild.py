"""Describes the surgery of a model in plain values, and repeats it on a fresh one."""

from typing import Any

import torch
from torch import nn

from mmbitsplit.models.layers.geometry import layer_geometry
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.stepped_layer import describe_place, place_of_row
from mmbitsplit.models.layers.steps import Steps
from mmbitsplit.models.layers.streams import blank_stream, rounded_streams, stream_qparams
from mmbitsplit.models.surgery.embedding import expect_embedding, geometry_of_table
from mmbitsplit.models.surgery.modules import get_module, hand_over, set_module
from mmbitsplit.models.surgery.prepare import PreparedModel


def describe(prepared: PreparedModel) -> dict[str, Any]:
    """Returns what ``rebuild`` needs, in plain values."""
    rows = {plan.name: describe_place(get_module(prepared.model, plan.name), plan)
            for plan in prepared.plan.layers}
    steps = {name: module.describe() for name in prepared.folded
             if isinstance(module := get_module(prepared.model, name), Steps)}
    streams = {name: {'quant_min': qparams.quant_min, 'quant_max': qparams.quant_max}
               for name, module in rounded_streams(prepared.model)
               if (qparams := stream_qparams(module)) is not None}
    products = {plan.name: prepared.products[plan.name].plan_row(plan)
                for plan in prepared.plan.products}
    tables = {plan.name: prepared.embeddings[plan.name].plan_row(plan)
              for plan in prepared.plan.embeddings}
    return {'layers': rows, 'folded': sorted(prepared.folded),
            **({'embeddings': tables} if tables else {}),
            **({'folded_steps': steps} if steps else {}),
            **({'streams': streams} if streams else {}),
            **({'products': products} if products else {})}


def rebuild(model: nn.Module, description: dict[str, Any]) -> None:
    """Repeats the surgery on a freshly built float model, ready to load quantized state.

    Raises:
        ValueError: The model lacks a layer of the description, or it is of another kind; the
            model is as it was.
    """
    names = dict(model.named_modules())
    tables = description.get('embeddings', {})
    for name in (*description['folded'], *description['layers'], *tables,
                 *description.get('streams', ()), *description.get('products', ())):
        if name not in names:
            raise ValueError(f"The checkpoint's layer '{name}' is not in the model: it belongs "
                             'to another architecture. Use the config written beside it.')
    for name in description.get('products', ()):
        if not isinstance(names[name], Product):
            raise ValueError(f"'{name}' is a product of activations in the checkpoint and a "
                             f'{type(names[name]).__name__} in the model: it belongs to another '
                             'architecture. Use the config written beside it.')
    places: dict[str, nn.Module] = {}
    like = next(model.parameters(), torch.zeros(0))
    for name, row in (*description['layers'].items(), *tables.items()):
        module = names[name]
        try:
            if name in tables:
                geometry_of_table(row, module)
            else:
                places[name] = place_of_row(row, layer_geometry(module), module.weight,
                                            module.bias, like)
        except ValueError as error:
            raise ValueError(f"Layer '{name}': {error} Use the config written beside the "
                             'checkpoint.') from error
    steps = {name: Steps.from_description(value, like)
             for name, value in description.get('folded_steps', {}).items()}
    for name, place in places.items():
        _swap(model, name, place)
    for name, row in tables.items():
        expect_embedding(names[name], row)
    for name in description['folded']:
        set_module(model, name, steps.get(name, nn.Identity()))
    for name, limits in description.get('streams', {}).items():
        blank_stream(get_module(model, name), **limits)
    for name, row in description.get('products', {}).items():
        get_module(model, name).expect(row)


def _swap(model: nn.Module, name: str, place: nn.Module) -> None:
    hand_over(get_module(model, name), place)
    set_module(model, name, place.train(False))
