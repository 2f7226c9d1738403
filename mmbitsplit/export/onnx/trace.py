"""Traces a model into an ONNX graph in which each call of a quantized layer is one node.

torch's exporter knows nothing of codes; it sees a node ``mmbitsplit::Layer`` that names the layer.
``rewrite`` puts quantizers and the layer's operator in its place.
"""

import functools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmbitsplit.export.onnx.requirements import need
from mmbitsplit.functional import output_size
from mmbitsplit.models import QuantizedLayer, quantized_layers, quantized_products
from mmbitsplit.models.layers.product import Product, product_shape
from mmbitsplit.models.layers.streams import rounded_streams, stream_qparams, streams_through
from mmbitsplit.structures import LayerGeometry, QParams

DOMAIN, OP_TYPE, STREAM_TYPE, PRODUCT_TYPE = 'mmbitsplit', 'Layer', 'Stream', 'Product'
OPSET = 21  # the first with 4-bit integers


@dataclass(frozen=True)
class GraphRequest:
    """A part of a model that becomes one graph.

    Args:
        name: What the graph is called; its file's name too.
        module: Computes the part; takes tensors, returns tensors nested in lists and tuples.
        inputs: Example tensors, one an argument of ``module.forward``.
        input_names: Names of the graph's inputs.
        dynamic: For each input (by name) the dimensions that may vary and their names.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TracedGraph:
    """What torch's exporter made of a request.

    Args:
        model: ``onnx_ir.Model`` with nodes ``mmbitsplit::Layer``.
        layers: The quantized layers that the nodes name.
        products: The quantized products that nodes ``mmbitsplit::Product`` name.
        streams: How residual streams are rounded, by the names in nodes ``mmbitsplit::Stream``.
        structure: The outputs' names, nested as the module returns its tensors.
    """

    model: Any
    layers: dict[str, QuantizedLayer]
    products: dict[str, Product]
    streams: dict[str, QParams]
    structure: Any


def trace(request: GraphRequest) -> TracedGraph:
    """Traces the module; its quantized layers become one node a call.

    Raises:
        ValueError: torch's exporter cannot follow the module; names its reason. Or a layer's codes
            are soft; names the layer. Of several widths, those in use are written.
    """
    need('onnxscript')
    layers = {name: layer for name, layer in quantized_layers(request.module)
              if layer.quantized}
    for name, layer in layers.items():
        layer.check_whole(name, 'it is exported')
    dynamic = tuple(dict(request.dynamic.get(name, {})) for name in request.input_names)
    given = {module: name for name, module in rounded_streams(request.module)}
    products = dict(quantized_products(request.module))
    with calls_as_nodes(layers), products_as_nodes(products), streams_as_nodes(given), \
            torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                request.module, request.inputs, dynamo=True, opset_version=OPSET,
                input_names=list(request.input_names), verbose=False,
                dynamic_shapes=dynamic if any(dynamic) else None)
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                f"torch's ONNX exporter cannot follow '{request.name}': {_reason(error)}. "
                'Export a fixed shape (no --dynamic) if it is about shapes, or a part of the '
                'model that is tensors alone.') from error
    # Draft export, the last resort of torch 2.8's exporter, keeps the branch that inputs take.
    if getattr(program, '_capture_strategy', None) == 'TorchExportDraftExportStrategy':
        raise ValueError(
            f"torch's ONNX exporter cannot follow '{request.name}' but for these inputs: what it "
            'computes depends on their values. Export a part of the model that is tensors alone.')
    structure = _name_outputs(program)
    streams = {name: qparams for module, name in given.items()
               if (qparams := stream_qparams(module)) is not None}
    return TracedGraph(program.model, layers, products, streams, structure)


@contextmanager
def calls_as_nodes(layers: Mapping[str, QuantizedLayer]) -> Iterator[None]:
    """Inside, each call of a layer is one symbolic operator with the shape of its output."""
    for name, layer in layers.items():
        layer.forward = functools.partial(_as_node, name, layer.geometry)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.__dict__['forward']


@contextmanager
def products_as_nodes(products: Mapping[str, Product]) -> Iterator[None]:
    """Inside, each call of a product is one symbolic operator with the shape of its output."""
    for name, product in products.items():
        product.forward = functools.partial(_product_as_node, name)
    try:
        yield
    finally:
        for product in products.values():
            del product.__dict__['forward']


def streams_as_nodes(names: Mapping[nn.Module, str]) -> AbstractContextManager[None]:
    """Inside, what rounds a residual stream is one symbolic operator."""
    return streams_through(lambda module, x: torch.onnx.ops.symbolic(
        f'{DOMAIN}::{STREAM_TYPE}', (x,), {'stream': names[module]}, dtype=x.dtype,
        shape=list(x.shape), version=1))


def _as_node(name: str, geometry: LayerGeometry, input: Tensor) -> Tensor:
    batch, *sizes = output_size(geometry, input.shape)
    shape = [batch, *sizes, geometry.out_channels] if geometry.kind == 'linear' \
        else [batch, geometry.out_channels, *sizes]
    return torch.onnx.ops.symbolic(f'{DOMAIN}::{OP_TYPE}', (input,), {'layer': name},
                                   dtype=input.dtype, shape=shape, version=1)


def _product_as_node(name: str, a: Tensor, b: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(f'{DOMAIN}::{PRODUCT_TYPE}', (a, b), {'product': name},
                                   dtype=a.dtype, shape=list(product_shape(a.shape, b.shape)),
                                   version=1)


def _name_outputs(program: Any) -> Any:
    """Names the outputs by their place in what the module returns; returns the nested names."""
    outputs = program.model.graph.outputs
    nested = pytree.tree_unflatten(list(range(len(outputs))),
                                   program.exported_program.call_spec.out_spec)
    for path, index in pytree.tree_flatten_with_path(nested)[0]:
        places = [str(getattr(key, 'idx', getattr(key, 'key', key))) for key in path]
        outputs[index].name = '_'.join(['output', *places])
    return _as_lists(pytree.tree_map(lambda index: outputs[index].name, nested))


def _as_lists(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_lists(item) for item in value]
    return value


def _reason(error: BaseException) -> str:
    """The innermost cause in a line; the exporter wraps it in advice for its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return ' '.join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress and warnings about its own insides off the screen."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
