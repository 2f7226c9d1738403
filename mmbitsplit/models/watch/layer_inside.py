"""Reads from a recorded call what a layer's class does around its one product.

    input -> steps -> padding -> product with a constant weight -> scale and bias -> steps -> output

Padding becomes part of the geometry; a weight that the class makes of its parameters, and scales,
biases and batch norms behind the product, become part of weight and bias. Other steps stay steps.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from mmbitsplit.functional import explicit_padding
from mmbitsplit.models.layers.steps import NO_STEPS, REPEATABLE, Step, StepList, constant, value
from mmbitsplit.models.watch.call_record import CallRecord, Node, NotUnderstood, Value
from mmbitsplit.structures import LayerGeometry

PADDING_MODES = {'reflection_pad2d': 'reflect', 'replication_pad2d': 'replicate'}
_MATRIX_PRODUCTS = ('addmm', 'mm', 'bmm')
_PRODUCTS = ('convolution', *_MATRIX_PRODUCTS)
_OTHER_PRODUCTS = ('baddbmm', 'matmul', 'einsum', '_scaled_dot_product', 'scaled_dot_product')
# Names of input, weight and bias in the schemas of products; '' for none.
_OPERANDS = (('input', 'weight', 'bias'), ('mat1', 'mat2', 'self'), ('self', 'mat2', ''))
_BATCH_OF_ONE = ('unsqueeze', 'squeeze')
_VIEWS = ('view', '_unsafe_view', 'reshape', *_BATCH_OF_ONE)
_HANDLES = ('detach', 'alias', 'clone', 'contiguous', 'expand')  # the same values


@dataclass(frozen=True)
class LayerInside:
    """What a layer's class does, where that is not just what its attributes say.

    Args:
        geometries: Those that agree with what was seen, the likeliest first.
        weight: What the product multiplies by, in the layout of the geometry's kind.
        bias: (out_channels,) or ``None``.
        before: Steps between the layer's input and the product's, padding not among them.
        after: Steps between the product and the layer's output.
    """

    geometries: tuple[LayerGeometry, ...]
    weight: Tensor
    bias: Tensor | None
    before: StepList = NO_STEPS
    after: StepList = NO_STEPS

    @property
    def geometry(self) -> LayerGeometry:
        """The likeliest one."""
        return self.geometries[0]


@dataclass(frozen=True)
class _Product:
    """The product of a call as the operation was given it."""

    node: Node
    x: Value
    weight: Tensor
    bias: Tensor | None
    geometry: LayerGeometry


def read_layer(record: CallRecord, output: Tensor) -> LayerInside:
    """Reads a call of a layer.

    Args:
        record: Of the call.
        output: What it returned.

    Raises:
        NotUnderstood: It does something that a quantized layer cannot; says what.
    """
    end = record.end(output)
    product = _find_product(record)
    before = record.path(0, product.x.index)
    after = record.path(product.node.outputs[0], end.index)
    start, entry = product.node.outputs[0], product.x.index
    geometry, weight, bias = product.geometry, product.weight, product.bias
    # Rows of all leading dimensions are one to a matrix, and an image alone is a batch of one.
    views = _VIEWS if geometry.kind == 'linear' else _BATCH_OF_ONE
    while before and before[-1].name in (*views, *_HANDLES):
        entry = before.pop().args[0].index
    while after and after[0].name in views and after[0].inputs == {start}:
        start = after.pop(0).outputs[0]
    geometries = (geometry,)
    if before and before[-1].name in ('constant_pad_nd', *PADDING_MODES):
        entry = before[-1].args[0].index
        geometries = _padded(before.pop(), geometry, record.tensors[entry].shape)
    elif geometry.kind == 'conv2d':
        geometries = _alike(geometry, record.tensors[entry].shape)
    dims = record.tensors[start].dim()
    while after and (affine := _affine(after, start, geometry, dims)) is not None:
        scale, shift = affine
        weight, bias = _scaled(weight, bias, scale, shift, geometry)
        start = after.pop(0).outputs[0]
    return LayerInside(geometries, weight, bias, _steps(before, 0, entry),
                       _steps(after, start, end.index))


def read_norm(record: CallRecord, output: Tensor) -> StepList:
    """Reads a call of a batch norm: the steps that its class takes after normalizing.

    Raises:
        NotUnderstood: The class does more than that.
    """
    last = record.end(output).index
    norms = [node for node in record.nodes if 'batch_norm' in node.name]
    if len(norms) != 1:
        raise NotUnderstood(f'normalizes {len(norms)} times')
    if norms[0].args[0] != Value(0):
        raise NotUnderstood('changes its input before it normalizes it')
    start = norms[0].outputs[0]
    return _steps(record.path(start, last), start, last)


def _find_product(record: CallRecord) -> _Product:
    """The one product of a call.

    Raises:
        NotUnderstood: There is none, more than one, or its weight is no constant.
    """
    found = [node for node in record.nodes if node.name in _PRODUCTS and not node.foreign]
    others = [node for node in record.nodes if node.name.startswith(_OTHER_PRODUCTS)]
    if len(found) + len(others) != 1:
        raise NotUnderstood(f'computes {len(found) + len(others)} products instead of one')
    if others:
        raise NotUnderstood(f'computes its product by {others[0].name}')
    node = found[0]
    given = {**node.named, '': None}
    x, weight, bias = next([given[name] for name in names] for names in _OPERANDS
                           if given.keys() >= set(names))
    if not isinstance(x, Value) or not isinstance(weight, Tensor) or isinstance(bias, Value):
        raise NotUnderstood('makes its weight or bias out of its input')
    linear = node.name in _MATRIX_PRODUCTS
    if node.name == 'bmm':  # of one matrix, for inputs that do not lie in a row
        if weight.shape[0] != 1 and not bool((weight == weight[:1]).all()):
            raise NotUnderstood('multiplies by several matrices')
        weight = weight[0]
    weight = weight.t() if linear else weight
    if weight.dim() != (2 if linear else 4) \
            or not linear and record.tensors[x.index].dim() != 4:
        raise NotUnderstood('computes a product of other dimensions')
    if node.kwargs or linear and bias is not None and (  # a convolution checks its bias itself
            bias.numel() != weight.shape[0] or bias.shape[-1] != weight.shape[0]):
        raise NotUnderstood('adds something else than a bias')
    bias = None if bias is None else bias.reshape(-1)
    return _Product(node, x, weight, bias, _geometry(node, weight))


def _geometry(node: Node, weight: Tensor) -> LayerGeometry:
    if weight.dim() == 2:
        return LayerGeometry('linear', weight.shape[1], weight.shape[0])
    given = node.named
    transposed = given['transposed']
    inputs, outputs = (weight.shape[0], weight.shape[1] * given['groups']) if transposed \
        else (weight.shape[1] * given['groups'], weight.shape[0])
    return LayerGeometry(
        'conv_transpose2d' if transposed else 'conv2d', inputs, outputs, groups=given['groups'],
        kernel_size=tuple(weight.shape[2:]), stride=_pair(given['stride']),
        padding=_pair(given['padding']), dilation=_pair(given['dilation']),
        output_padding=_pair(given['output_padding']))


def _pair(values: Any) -> tuple[int, int]:
    return (values[0], values[-1])


def canonical(geometry: LayerGeometry) -> LayerGeometry:
    """The same padding always said in the same way."""
    left, right, top, bottom = geometry.pre_padding
    if geometry.pre_padding_mode != 'zeros' or (left, top) != (right, bottom):
        return geometry
    height, width = geometry.padding
    return replace(geometry, padding=(height + top, width + left), pre_padding=(0, 0, 0, 0))


def _padded(node: Node, geometry: LayerGeometry, shape: torch.Size) -> tuple[LayerGeometry, ...]:
    """Geometries that agree with a padding of the input before the product.

    Args:
        node: The padding.
        geometry: Of the product alone.
        shape: Of the input before it was padded.
    """
    given = node.named
    pads, fill = given['pad' if 'pad' in given else 'padding'], given.get('value', 0)
    if geometry.kind != 'conv2d' or any(pads[4:]) or min(pads) < 0:
        raise NotUnderstood('pads or crops its input in an unknown way')
    left, right, top, bottom = (*pads, 0, 0)[:4]
    if node.name in PADDING_MODES:
        if any(geometry.padding):
            raise NotUnderstood('pads its input twice')
        return (replace(geometry, pre_padding=(left, right, top, bottom),
                        pre_padding_mode=PADDING_MODES[node.name]),)
    if fill != 0:
        raise NotUnderstood(f'pads its input with {fill}')
    height, width = geometry.padding
    return _alike(replace(geometry, padding=(0, 0), pre_padding=(
        left + width, right + width, top + height, bottom + height)), shape)


def _alike(geometry: LayerGeometry, shape: torch.Size) -> tuple[LayerGeometry, ...]:
    """A geometry, and those whose rule gives the same padding on an input of this shape."""
    fixed = canonical(geometry)
    rules = (replace(geometry, padding=(0, 0), pre_padding=(0, 0, 0, 0), auto_padding=name)
             for name in ('same_upper', 'same_lower'))
    return (fixed, *(rule for rule in rules
                     if canonical(explicit_padding(rule, shape)) == fixed))


def _affine(after: list[Node], current: int, geometry: LayerGeometry, dims: int,
            ) -> tuple[Tensor, Tensor] | None:
    """Scale and shift (float64, one a channel or one) of the next step, ``None`` if it is none."""
    node = after[0]
    if node.foreign or node.inputs != {current} \
            or any(current in other.inputs for other in after[1:]):
        return None
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if 'batch_norm' in node.name:
        return _norm_affine(node)
    if node.name not in ('mul', 'div', 'add', 'sub') or node.kwargs or len(node.args) != 2:
        return None
    by_value, other = node.args
    if other == Value(current) and node.name in ('mul', 'add'):
        by_value, other = other, by_value
    factor = _per_channel(other, geometry, dims)
    if by_value != Value(current) or factor is None:
        return None
    return {'mul': (factor, zero), 'div': (one / factor, zero), 'add': (one, factor),
            'sub': (one, -factor)}[node.name]


def _norm_affine(node: Node) -> tuple[Tensor, Tensor] | None:
    """Of a batch norm with running statistics; its versions in torch name arguments alike."""
    given = node.named
    weight, bias, mean, variance = (
        item.double() if isinstance(item, Tensor) else None
        for item in (given['weight'], given['bias'], given['running_mean'], given['running_var']))
    if mean is None or variance is None or given.get('training'):
        return None
    scale = (1.0 if weight is None else weight) / torch.sqrt(
        variance + given.get('eps', given.get('epsilon')))
    return scale, (0.0 if bias is None else bias) - mean * scale


def _per_channel(item: Any, geometry: LayerGeometry, dims: int) -> Tensor | None:
    """A constant as (1,) or (out_channels,) float64, ``None`` if it is neither."""
    if isinstance(item, (int, float)) and not isinstance(item, bool):
        return torch.tensor([item], dtype=torch.float64)
    if not isinstance(item, Tensor) or not item.dtype.is_floating_point:
        return None
    if item.numel() == 1:
        return item.detach().double().reshape(1)
    axis = dims - 1 if geometry.kind == 'linear' else 1
    shape = [geometry.out_channels if dim == axis else 1 for dim in range(dims)]
    if [1] * (dims - item.dim()) + list(item.shape) != shape:
        return None
    return item.detach().double().reshape(-1)


def _scaled(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor,
            geometry: LayerGeometry) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of ``scale * layer + shift``."""
    scale, shift = (item.to(weight.device).expand(geometry.out_channels)
                    for item in (scale, shift))
    new_bias = shift if bias is None else bias.detach().double() * scale + shift
    scaled = scale_outputs(weight.detach().double(), scale, geometry)
    return scaled.to(weight.dtype), new_bias.to(weight.dtype) \
        if bias is not None or bool(shift.any()) else None


def scale_outputs(weight: Tensor, scale: Tensor, geometry: LayerGeometry) -> Tensor:
    """Multiplies each output channel of a weight by its own factor, (out_channels,)."""
    if geometry.kind == 'conv_transpose2d':  # (in, out/groups, kh, kw), groups along in
        per_group = scale.view(geometry.groups, -1)  # (G, M)
        spread = per_group.repeat_interleave(weight.shape[0] // geometry.groups, dim=0)
        return weight * spread.unsqueeze(-1).unsqueeze(-1)  # (in, M, 1, 1)
    return weight * scale.view(-1, *[1] * (weight.dim() - 1))


def _steps(nodes: list[Node], start: int, end: int) -> StepList:
    """Writes operations as steps.

    Raises:
        NotUnderstood: One of them is not repeatable on inputs of other sizes.
    """
    numbers, steps, constants = {start: 0}, [], []
    for node in nodes:
        if node.name in _HANDLES and not node.foreign and isinstance(node.args[0], Value):
            numbers[node.outputs[0]] = numbers[node.args[0].index]
            continue
        if node.name not in REPEATABLE or node.foreign:
            raise NotUnderstood('takes a step that cannot be part of a quantized layer: '
                                f'{"" if node.foreign else "aten."}{node.name}')
        args, kwargs = tree_map_only(
            (Value, Tensor), lambda item: _argument(item, numbers, constants),
            (node.args, node.kwargs))
        if any(not isinstance(item, (int, float, type(None)))
               for item in tree_leaves((args, kwargs))):
            raise NotUnderstood(f'gives aten.{node.name} an argument that cannot be stored')
        steps.append(Step(f'{node.name}.{node.overload}', tuple(args), dict(kwargs)))
        numbers[node.outputs[0]] = len(steps)
    if numbers[end] != len(steps):  # what comes last must be what is returned
        raise NotUnderstood('returns something it computed on the way')
    return StepList(tuple(steps), tuple(constants))


def _argument(item: Value | Tensor, numbers: dict[int, int], constants: list[Tensor]) -> Any:
    if isinstance(item, Value):
        return value(numbers[item.index])
    if item.numel() == 1 and item.dim() == 0:
        return item.item()
    constants.append(item.detach().clone())
    return constant(len(constants) - 1)
