"""The state of a quantized layer in a checkpoint: which tensors there are, and what they mean.

A layer in memory owns quantizers; here stand, as pure functions, the two things that a file holds
of it. Nothing else knows their names.

*Tensors*, flat under the layer's own name (``to_file``, ``to_memory``):

====================  =========  ==================================================================
``bias``              float      (out_channels,)
``codes``             uint8      (out_channels, bytes): rows of packed codes (``pack_codes``)
``weight_scale``      float32    (out_channels,)
``weight_offset``     float32    (out_channels,), where a method makes one
``input_scale``       float32    (1,) or (C,); ``output_scale`` (1,)
``input_zero_point``  int32      the same; ``output_zero_point``
``input_max``         uint8      (C,) largest code, where channels differ in width
``norm_scale``        float32    (out_channels,) of a folded norm, and ``norm_shift``, where others
                                 read the weight (``outside_view``)
====================  =========  ==================================================================

*A row of the plan*, plain values that say what shapes and widths the tensors have (``plan_row``,
``blank_solution``): ``kind``, ``shape``, ``num_bits``, ``bias``, ``geometry``, ``input`` and, where
there is one, ``output``, ``class_geometry``, ``weight_offset``, ``norm``; for readers of the file
``role`` and the input's ``mode``; ``before`` and ``after``, the steps around a ``SteppedLayer``;
``widths`` where there are several.

Layers of several widths have parts instead of ``codes``: see ``width_state``,
``solution_to_file`` and ``solution_from_file``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional import (
    narrower_qparams,
    pack_codes,
    rows_to_weight,
    unpack_codes,
    weight_rows,
)
from mmbitsplit.models.layers.width_state import (
    from_parts,
    has_widths,
    stored_offset,
    to_parts,
    widths_row,
    with_biases,
)
from mmbitsplit.structures import LayerGeometry, LayerPlan, LayerSolution, QParams

# Name in a file: name among the layer's modules.
NAMES = {
    'bias': 'weight_quantizer.bias',
    'codes': 'weight_quantizer.codes',
    'weight_scale': 'weight_quantizer.scale',
    'weight_offset': 'weight_quantizer.offset',
    'input_scale': 'input_quantizer.scale',
    'input_zero_point': 'input_quantizer.zero_point',
    'input_max': 'input_quantizer.channel_max',
    'output_scale': 'output_quantizer.scale',
    'output_zero_point': 'output_quantizer.zero_point',
}


def to_file(tensors: Mapping[str, Tensor], num_bits: int, geometry: LayerGeometry,
            ) -> dict[str, Tensor]:
    """Names and packs a layer's tensors as a checkpoint has them.

    Args:
        tensors: By their names among the layer's modules; others are left out.
        num_bits: Width of a weight code.
        geometry: Of the layer.
    """
    found = {name: tensors[inner] for name, inner in NAMES.items() if inner in tensors}
    if 'codes' in found:
        rows = weight_rows(found['codes'], geometry).flatten(0, 1)  # (out_channels, N)
        found['codes'] = pack_codes(rows, num_bits)
    return found


def to_memory(tensors: Mapping[str, Tensor], num_bits: int, geometry: LayerGeometry,
              ) -> dict[str, Tensor]:
    """Inverse of ``to_file``."""
    found = {NAMES[name]: value for name, value in tensors.items() if name in NAMES}
    if 'codes' in tensors:
        rows = unpack_codes(tensors['codes'], num_bits, geometry.inputs_per_output)
        found[NAMES['codes']] = rows_to_weight(
            rows.view(geometry.groups, -1, geometry.inputs_per_output), geometry)
    return found


def solution_to_file(solution: LayerSolution, geometry: LayerGeometry) -> dict[str, Tensor]:
    """The tensors of a layer, of several widths or one, as a checkpoint has them.

    Args:
        solution: What is installed.
        geometry: Of the layer.
    """
    several = has_widths(solution)
    solution = with_biases(solution)
    found = {'bias': solution.bias, 'weight_scale': solution.weight_scale,
             'weight_offset': stored_offset(solution) if several else solution.weight_offset}
    for side, qparams in (('input', solution.qparams), ('output', solution.output_qparams)):
        if qparams is not None:
            found[f'{side}_scale'] = qparams.scale
            found[f'{side}_zero_point'] = qparams.zero_point.to(torch.int32)
    if several:
        packed = to_parts(solution)
    else:
        rows = weight_rows(solution.codes, geometry).flatten(0, 1)
        packed = {'codes': pack_codes(rows, solution.num_bits)}
    return {**{name: value for name, value in found.items() if value is not None}, **packed}


def solution_from_file(tensors: Mapping[str, Tensor], row: Mapping[str, Any],
                       geometry: LayerGeometry, kept: Sequence[int] | None = None,
                       ) -> LayerSolution:
    """Inverse of ``solution_to_file`` for a layer of several widths.

    Args:
        tensors: By their names in a file.
        row: Of the layer, with ``widths``.
        geometry: Of the layer.
        kept: The first of the widths, whose parts are there; all when not given.

    Raises:
        ValueError: A tensor is missing, or a part has not the bytes that it must have.
    """
    blank = _blank_widest(row, geometry)
    own = {'bias': blank.bias, 'weight_scale': blank.weight_scale,
           'weight_offset': blank.weight_offset}
    found: dict[str, Any] = {'nesting': row['widths'].get('nesting')}
    for name, value in own.items():
        if value is not None:
            found[name] = _tensor(tensors, name)
    for side, name in (('input', 'qparams'), ('output', 'output_qparams')):
        qparams = getattr(blank, name)
        if qparams is not None:
            found[name] = dataclasses.replace(
                qparams, scale=_tensor(tensors, f'{side}_scale'),
                zero_point=_tensor(tensors, f'{side}_zero_point'))
    return from_parts(tensors, row['widths'], dataclasses.replace(blank, **found), geometry, kept)


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"the tensor '{name}' is missing.")
    return tensors[name]


def plan_row(solution: LayerSolution, geometry: LayerGeometry,
             declared: LayerGeometry | None = None, plan: LayerPlan | None = None,
             ) -> dict[str, Any]:
    """What a checkpoint must say of a layer besides its tensors.

    Args:
        solution: What is installed.
        geometry: Of the layer.
        declared: See ``QuantizedLayer``.
        plan: Of the layer, for readers of the file.
    """
    row: dict[str, Any] = {'kind': geometry.kind, 'shape': list(geometry.weight_shape),
           'num_bits': solution.num_bits, 'bias': solution.bias is not None, 'input': None,
           'geometry': _unusual(geometry)}
    for side, qparams in (('input', solution.qparams), ('output', solution.output_qparams)):
        if qparams is not None:
            row[side] = {'size': qparams.scale.numel(), 'quant_min': qparams.quant_min,
                         'quant_max': qparams.quant_max, 'unit': qparams.unit}
    if declared is not None:
        row['class_geometry'] = _unusual(declared)
    if solution.qparams is not None and solution.qparams.channel_max is not None:
        row['input']['mixed'] = True
    if has_widths(solution):
        solution = with_biases(solution)
        row |= {'bias': solution.bias is not None, 'widths': widths_row(solution)}
    offset = stored_offset(solution) if 'widths' in row else solution.weight_offset
    if offset is not None:
        row['weight_offset'] = True
    if plan is not None:
        row['role'] = plan.role
        if row['input'] is not None:
            row['input']['mode'] = plan.activation.mode
    return row


def blank_solution(row: Mapping[str, Any], geometry: LayerGeometry) -> LayerSolution:
    """Room for the tensors that a row describes: a solution of zeros and ones."""
    widest = _blank_widest(row, geometry)
    widths = row.get('widths')
    if widths is None:
        return widest
    narrower = {f'narrower_{side}s': tuple(
        narrower_qparams(qparams, 2.0 ** (widths[side][-1] - num_bits), num_bits)
        for num_bits in reversed(widths[side][:-1]))
        for side, qparams in (('input', widest.qparams), ('output', widest.output_qparams))
        if side in widths}
    return dataclasses.replace(widest, nesting=widths.get('nesting'), **narrower, narrower=tuple(
        dataclasses.replace(widest, num_bits=num_bits,
                            codes=None if 'nesting' in widths else widest.codes)
        for num_bits in reversed(widths['weight'][:-1])))


def _blank_widest(row: Mapping[str, Any], geometry: LayerGeometry) -> LayerSolution:
    channels = geometry.out_channels
    sides = {}
    for side in ('input', 'output'):
        values = row.get(side)  # older checkpoints say nothing of outputs
        if values is not None:
            size = values['size']
            sides[side] = QParams(
                torch.ones(size), torch.zeros(size), values['quant_min'], values['quant_max'],
                unit=values['unit'], channel_max=torch.zeros(size) if values.get('mixed') else None)
    return LayerSolution(
        codes=torch.zeros(geometry.weight_shape, dtype=torch.int8), num_bits=row['num_bits'],
        weight_scale=torch.ones(channels), bias=torch.zeros(channels) if row['bias'] else None,
        qparams=sides.get('input'), output_qparams=sides.get('output'),
        weight_offset=torch.zeros(channels) if row.get('weight_offset') else None)


def geometry_in_row(row: Mapping[str, Any]) -> LayerGeometry:
    """The geometry that a row of format 2 or later describes by itself."""
    own = {name: tuple(value) if isinstance(value, list) else value
           for name, value in row['geometry'].items()}
    first, second, *kernel = row['shape']
    if kernel:
        own['kernel_size'] = tuple(kernel)
    groups = own.get('groups', 1)
    if row['kind'] == 'conv_transpose2d':
        return LayerGeometry(row['kind'], first, second * groups, **own)
    return LayerGeometry(row['kind'], second * groups, first, **own)


def geometry_of_row(row: Mapping[str, Any], declared: LayerGeometry) -> LayerGeometry:
    """The geometry of the layer that a row describes.

    Args:
        row: From a checkpoint.
        declared: What the attributes of the model's float layer say.

    Raises:
        ValueError: The row is of another layer; says where they differ.
    """
    if row['kind'] != declared.kind:
        raise ValueError(f"the checkpoint has a {row['kind']} where the model has a "
                         f'{declared.kind}.')
    shape = list(declared.weight_shape)
    if list(row['shape']) != shape:  # packed rows of other lengths may have as many bytes
        raise ValueError(f"the checkpoint has a weight of shape {list(row['shape'])} where "
                         f'the model has {shape}.')
    theirs, ours = row.get('class_geometry', row.get('geometry')), _unusual(declared)
    if theirs is not None and theirs != ours:  # strides and the like leave shapes as they are
        raise ValueError(f'the checkpoint has a {declared.kind} with '
                         f'{theirs or "default geometry"} where the model has '
                         f'{ours or "default geometry"}.')
    if 'class_geometry' not in row:
        return declared
    return geometry_in_row(row)


def code_bits(side: Mapping[str, Any] | None) -> int | None:
    """Width of the codes of a row's ``input`` or ``output``, ``None`` for float."""
    return None if side is None else (side['quant_max'] - side['quant_min']).bit_length()


def input_mode(side: Mapping[str, Any] | None) -> str | None:
    """Mode of a row's ``input``, ``None`` for float."""
    if side is None:
        return None
    # Format 1 names no mode, but what is stored tells it.
    mode = 'per_channel' if not side['unit'] else 'per_tensor' if side['size'] == 1 else 'ecaq'
    return side.get('mode', mode)


def _unusual(geometry: LayerGeometry) -> dict[str, Any]:
    """What of a geometry is neither its default nor told by the weight's shape, as JSON has it."""
    return {item.name: list(value) if isinstance(value, tuple) else value
            for item in dataclasses.fields(geometry)
            if item.default is not dataclasses.MISSING and item.name != 'kernel_size'
            and (value := getattr(geometry, item.name)) != item.default}
