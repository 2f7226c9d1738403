"""What a checkpoint holds of a layer: tensors and rows, there and back."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from mmbitsplit.functional import code_range
from mmbitsplit.models import layer_geometry
from mmbitsplit.models.layers.layer_state import (
    NAMES,
    blank_solution,
    code_bits,
    geometry_of_row,
    input_mode,
    plan_row,
    to_file,
    to_memory,
)
from mmbitsplit.structures import LayerSolution, QParams

LAYERS = {
    'strided': lambda: nn.Conv2d(6, 4, 3, 2, 1, bias=False),
    'reflect': lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode='reflect'),
    'transposed': lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2),
    'linear': lambda: nn.Linear(6, 4),
}


@pytest.fixture(params=LAYERS)
def geometry(request):
    return layer_geometry(LAYERS[request.param]())


def qparams(count, **changes):
    return QParams(**{**dict(scale=torch.rand(count), zero_point=torch.zeros(count), quant_min=0,
                             quant_max=15), **changes})


SIDES = {
    'float': {},
    'tensor': {'qparams': qparams(1)},
    'ecaq': {'qparams': qparams(6), 'output_qparams': qparams(1, quant_min=-128, quant_max=127)},
    'widths': {'qparams': qparams(6, unit=False, channel_max=torch.arange(6.) + 1),
               'weight_offset': torch.rand(4)},
}


def solution_of(geometry, sides, num_bits=3):
    low, high = code_range(num_bits, signed=True, narrow_range=True)
    return LayerSolution(**{**dict(
        codes=torch.randint(low, high + 1, geometry.weight_shape).to(torch.int8),
        num_bits=num_bits, weight_scale=torch.rand(4), bias=torch.rand(4), qparams=None), **sides})


@pytest.mark.parametrize('sides', SIDES.values(), ids=SIDES)
def test_a_row_says_all_that_makes_room_for_the_tensors(geometry, sides):
    solution = solution_of(geometry, sides)
    row = json.loads(json.dumps(plan_row(solution, geometry)))
    room = blank_solution(row, geometry_of_row(row, geometry))
    assert plan_row(room, geometry) == row
    for field in dataclasses.fields(LayerSolution):
        one, other = getattr(solution, field.name), getattr(room, field.name)
        if isinstance(one, torch.Tensor):
            assert one.shape == other.shape and one.dtype == other.dtype
        else:
            assert (one is None) == (other is None)


@pytest.mark.parametrize('num_bits', [2, 5, 8])
def test_tensors_go_into_a_file_and_back(geometry, num_bits):
    codes = solution_of(geometry, {}, num_bits).codes
    tensors = {NAMES['codes']: codes, NAMES['weight_scale']: torch.rand(4),
               NAMES['input_zero_point']: torch.tensor([3], dtype=torch.int32), 'other': codes}
    stored = to_file(tensors, num_bits, geometry)
    assert list(stored) == ['codes', 'weight_scale', 'input_zero_point']
    assert stored['codes'].nbytes == 4 * -(-geometry.inputs_per_output * num_bits // 8)
    back = to_memory(stored, num_bits, geometry)
    assert back.keys() == {name for name in tensors if name != 'other'}
    assert all(torch.equal(back[name], tensors[name]) for name in back)


@pytest.mark.parametrize(('side', 'bits', 'mode'), [
    (None, None, None),
    (dict(quant_min=0, quant_max=15, size=1, unit=True), 4, 'per_tensor'),
    (dict(quant_min=-128, quant_max=127, size=6, unit=True), 8, 'ecaq'),
    (dict(quant_min=0, quant_max=7, size=6, unit=False), 3, 'per_channel'),
    (dict(quant_min=0, quant_max=7, size=1, unit=True, mode='ecaq'), 3, 'ecaq')])
def test_a_row_tells_readers_width_and_mode_of_an_input(side, bits, mode):
    """Rows of format 1 name no mode."""
    assert (code_bits(side), input_mode(side)) == (bits, mode)
