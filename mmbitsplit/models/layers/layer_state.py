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
``role`` and the input's ``mode``; ``before`` and ``after``, the steps around a ``SteppedLayer``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional import pack_codes, rows_to_weight, unpack_codes, weight_rows
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
    if solution.weight_offset is not None:
        row['weight_offset'] = True
    if plan is not None:
        row['role'] = plan.role
        if row['input'] is not None:
            row['input']['mode'] = plan.activation.mode
    return row


def blank_solution(row: Mapping[str, Any], geometry: LayerGeometry) -> LayerSolution:
    """Room for the tensors that a row describes: a solution of zeros and ones."""
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
    own = {name: tuple(value) if isinstance(value, list) else value
           for name, value in row['geometry'].items()}
    return LayerGeometry(declared.kind, declared.in_channels, declared.out_channels,
                         kernel_size=declared.kernel_size, **own)


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
