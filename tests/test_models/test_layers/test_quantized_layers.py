"""A quantized layer: the float layer before, integer products after, small in a state dict."""

import copy
import dataclasses
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmbitsplit.functional import (
    channel_dim,
    code_range,
    fake_quantize,
    gather_patches,
    output_size,
    quantize,
    weight_rows,
)
from mmbitsplit.models import QuantizedLayer, apply, layer_geometry
from mmbitsplit.structures import LayerSolution, QParams

LAYERS = {
    'conv': lambda: nn.Conv2d(6, 4, 3, 2, 1),
    'conv_no_bias': lambda: nn.Conv2d(6, 4, (3, 1), bias=False),
    'grouped_dilated': lambda: nn.Conv2d(6, 4, 3, padding=2, dilation=2, groups=2),
    'depthwise': lambda: nn.Conv2d(6, 6, 3, groups=6),
    'same_even': lambda: nn.Conv2d(6, 4, 4, padding='same'),
    'reflect': lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode='reflect'),
    'transposed': lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, 1),
    'transposed_grouped': lambda: nn.ConvTranspose2d(6, 4, 3, 2, groups=2, bias=False),
    'linear': lambda: nn.Linear(6, 4),
}
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(params=LAYERS)
def float_layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


def quantized(module):
    return QuantizedLayer(layer_geometry(module), module.weight, module.bias)


def make_input(module):
    shape = (2, 5, 6) if isinstance(module, nn.Linear) else (2, 6, 9, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def make_qparams(kind, channels):
    """'unit': one scale; 'ecaq': a scale a channel, one zero point; 'per_channel'; or none."""
    if kind == 'float':
        return None
    count = 1 if kind == 'unit' else channels
    zero_point = torch.randint(0, 16, (count,)) if kind == 'per_channel' \
        else torch.full((count,), 7)
    return QParams(torch.rand(count) * 0.2 + 0.1, zero_point.float(), 0, 15,
                   unit=kind != 'per_channel')


def make_solution(layer, bits=3, inputs='unit', bias=True):
    torch.manual_seed(1)
    geometry = layer.geometry
    low, high = code_range(bits, signed=True, narrow_range=True)
    codes = torch.randint(low, high + 1, geometry.weight_shape).to(torch.int8)
    return LayerSolution(codes=codes, num_bits=bits,
                         weight_scale=torch.rand(geometry.out_channels) + 0.01,
                         bias=torch.randn(geometry.out_channels) if bias else None,
                         qparams=make_qparams(inputs, geometry.in_channels))


def to_columns(output, geometry):
    return output.movedim(channel_dim(geometry), -1).reshape(-1, geometry.out_channels).T


INPUTS = ['float', 'unit', 'ecaq', 'per_channel']


def test_before_install_it_is_the_float_layer(float_layer):
    layer, x = quantized(float_layer), make_input(float_layer)
    assert torch.equal(layer(x), float_layer(x))
    assert not layer.quantized
    assert set(layer.state_dict()) == set(float_layer.state_dict())
    assert torch.equal(layer.float_rows(), weight_rows(float_layer.weight, layer.geometry))


def test_the_float_layer_it_is_made_of_is_not_shared(float_layer):
    layer, x = quantized(float_layer), make_input(float_layer)
    expected = float_layer(x)
    float_layer.weight.data.zero_()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('inputs', INPUTS)
def test_after_install_it_computes_scale_times_codes_times_input(float_layer, inputs, bias):
    """Against patches and whole codes in float64, position by position."""
    layer, x = quantized(float_layer), make_input(float_layer)
    solution = make_solution(layer, inputs=inputs, bias=bias)
    apply(layer, solution)
    geometry, qparams = layer.geometry, solution.qparams
    entering = x
    if inputs in ('unit', 'ecaq'):
        shape = [1] * x.dim()
        shape[channel_dim(geometry)] = -1
        entering = quantize(x, qparams, channel_dim(geometry)) - qparams.zero_point.view(shape)
    elif inputs == 'per_channel':
        entering = fake_quantize(x, qparams, channel_dim(geometry))
    positions = torch.arange(math.prod(output_size(geometry, x.shape)))
    products = (weight_rows(solution.codes, geometry).double()
                @ gather_patches(entering.double(), positions, geometry)).flatten(0, 1)
    expected = products * solution.weight_scale.double().unsqueeze(1)
    if bias:
        expected = expected + solution.bias.double().unsqueeze(1)
    torch.testing.assert_close(to_columns(layer(x), geometry).double(), expected,
                               rtol=1e-5, atol=1e-4)
    assert layer.quantized


@pytest.mark.parametrize('inputs', ['unit', 'ecaq'])
def test_with_unit_inputs_there_is_one_integer_product(float_layer, inputs):
    layer, x = quantized(float_layer), make_input(float_layer)
    solution = make_solution(layer, inputs=inputs, bias=False)
    apply(layer, solution)
    products = to_columns(layer(x), layer.geometry) / solution.weight_scale.unsqueeze(1)
    torch.testing.assert_close(products, products.round(), rtol=0, atol=1e-2)
    assert products.abs().max() > 5


@pytest.mark.parametrize('bits', [2, 3, 5, 8])
def test_codes_are_bit_packed_in_the_state_dict(float_layer, bits):
    layer = quantized(float_layer)
    solution = make_solution(layer, bits)
    apply(layer, solution)
    state, geometry = layer.state_dict(), layer.geometry
    assert set(state) == {'codes', 'weight_scale', 'bias', 'input_scale', 'input_zero_point'}
    assert state['codes'].dtype == torch.uint8
    assert state['codes'].shape == (geometry.out_channels,
                                    math.ceil(geometry.inputs_per_output * bits / 8))
    assert state['input_zero_point'].dtype == torch.int32
    assert layer.codes.dtype == torch.int8  # in memory they stay as they are


@pytest.mark.parametrize(('bits', 'bias'), [(2, True), (3, False), (8, True)])
@pytest.mark.parametrize('inputs', INPUTS)
def test_state_survives_plan_row_and_state_dict(float_layer, inputs, bias, bits):
    layer, x = quantized(float_layer), make_input(float_layer)
    apply(layer, make_solution(layer, bits, inputs, bias))
    other = quantized(float_layer)
    other.expect(layer.plan_row())
    missing, unexpected = other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert not missing
    assert not unexpected
    assert torch.equal(other(x), layer(x))
    assert torch.equal(other.codes, layer.codes)
    assert other.plan_row() == layer.plan_row()


OUTPUTS = [QParams(torch.tensor([0.5]), torch.tensor([0.0]), -128, 127, unit=False),
           QParams(torch.tensor([0.7]), torch.tensor([3.0]), 0, 15, unit=False)]


@pytest.mark.parametrize('qparams', OUTPUTS, ids=['signed', 'asymmetric'])
@pytest.mark.parametrize('inputs', INPUTS)
def test_a_quantized_output_is_rounded_after_the_bias(float_layer, inputs, qparams):
    layer, x = quantized(float_layer), make_input(float_layer)
    solution = make_solution(layer, inputs=inputs)
    apply(layer, solution)
    plain = layer(x)
    other = quantized(float_layer)
    apply(other, replace(solution, output_qparams=qparams))
    y = other(x)
    assert torch.equal(y, fake_quantize(plain, qparams))
    assert y.unique().numel() > 3 and not torch.equal(y, plain)
    torch.testing.assert_close(copy.deepcopy(other).double()(x.double()), y.double(),
                               atol=float(qparams.scale) * 1.01, rtol=0)


@pytest.mark.parametrize('qparams', OUTPUTS, ids=['signed', 'asymmetric'])
def test_a_quantized_output_survives_plan_row_and_state_dict(float_layer, qparams):
    layer, x = quantized(float_layer), make_input(float_layer)
    apply(layer, replace(make_solution(layer), output_qparams=qparams))
    other = quantized(float_layer)
    other.expect(json.loads(json.dumps(layer.plan_row())))
    missing, unexpected = other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert not missing and not unexpected
    assert torch.equal(other(x), layer(x)) and other.plan_row() == layer.plan_row()
    assert {'output_scale', 'output_zero_point'} <= set(layer.state_dict())


def test_a_plan_row_without_a_quantized_output_says_nothing_of_it(float_layer):
    layer, x = quantized(float_layer), make_input(float_layer)
    apply(layer, make_solution(layer))
    row = layer.plan_row()
    assert 'output' not in row
    other = quantized(float_layer)
    other.expect(row)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x)) and other.output_qparams is None


def test_another_kind_of_layer_is_refused():
    conv, linear = quantized(nn.Conv2d(6, 4, 1)), quantized(nn.Linear(6, 4))
    apply(conv, make_solution(conv))
    with pytest.raises(ValueError, match='has a conv2d where the model has a linear'):
        linear.expect(conv.plan_row())


@pytest.mark.parametrize('size', [(8, 4, 1), (6, 4, 3), (6, 5, 1)])
def test_another_shape_is_refused(size):
    """Rows of 6 and of 8 codes of 3 bits take as many bytes: sizes alone would not tell."""
    saved, other = quantized(nn.Conv2d(6, 4, 1)), quantized(nn.Conv2d(*size))
    apply(saved, make_solution(saved))
    with pytest.raises(ValueError, match=r'shape \[4, 6, 1, 1\] where the model has'):
        other.expect(saved.plan_row())


@pytest.mark.parametrize('inputs', INPUTS)
def test_copies_and_casts_keep_their_own_state(float_layer, inputs):
    layer, x = quantized(float_layer), make_input(float_layer)
    apply(layer, make_solution(layer, inputs=inputs))
    expected = layer(x)
    other = copy.deepcopy(layer)
    assert torch.equal(other(x), expected)
    torch.testing.assert_close(other.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-3)
    other.weight_scale.zero_()
    other.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize('install', [False, True])
def test_the_input_is_never_modified(float_layer, install):
    layer, x = quantized(float_layer), make_input(float_layer)
    if install:
        apply(layer, make_solution(layer))
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)


def test_output_size_of_a_transposed_conv_is_refused_with_the_way_out():
    layer = quantized(nn.ConvTranspose2d(6, 4, 3, 2))
    with pytest.raises(ValueError, match='output_size.*skip=True'):
        layer(torch.zeros(1, 6, 4, 4), output_size=(10, 10))


def test_printing_says_whether_it_is_quantized():
    layer = quantized(nn.Linear(6, 4))
    assert 'float' in repr(layer)
    apply(layer, make_solution(layer))
    assert 'quantized' in repr(layer)


def test_an_offset_and_widths_of_channels_are_state(float_layer):
    """What ACIQ writes: computed by hand on dequantized inputs, and the same after a reload."""
    layer, x = quantized(float_layer), make_input(float_layer)
    geometry = layer.geometry
    solution = make_solution(layer, inputs='per_channel')
    largest = torch.tensor([3.0, 7.0, 15.0] * geometry.in_channels)[:geometry.in_channels]
    offset = torch.linspace(-0.2, 0.2, geometry.out_channels)
    solution = dataclasses.replace(
        solution, weight_offset=offset, qparams=dataclasses.replace(
            solution.qparams, zero_point=torch.zeros(geometry.in_channels), channel_max=largest))
    apply(layer, solution)
    shape = [1] * x.dim()
    shape[channel_dim(geometry)] = -1
    scale = solution.qparams.scale.view(shape)
    codes = (x / scale).round().clamp(min=0).minimum(largest.view(shape))
    positions = torch.arange(math.prod(output_size(geometry, x.shape)))
    patches = gather_patches(codes * scale, positions, geometry)
    rows = weight_rows(solution.codes, geometry).float()  # (G, M, N)
    rows = rows * solution.weight_scale.view(rows.shape[0], -1, 1) \
        + offset.view(rows.shape[0], -1, 1)
    expected = (rows @ patches).flatten(0, 1) + solution.bias.unsqueeze(1)
    torch.testing.assert_close(to_columns(layer(x), geometry), expected, rtol=1e-4, atol=1e-4)
    other = quantized(float_layer)
    other.expect(layer.plan_row())
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(other(x), layer(x)) and other.plan_row() == layer.plan_row()
    assert layer.state_dict()['input_max'].dtype == torch.uint8
    apply(layer, make_solution(layer))  # written over: nothing of it is left
    assert not {'weight_offset', 'input_max'} & set(layer.state_dict())


@pytest.mark.parametrize('inputs', INPUTS)
def test_float_weights_are_kept_until_they_are_released(float_layer, inputs):
    layer, x = quantized(float_layer), make_input(float_layer)
    weight, bias = layer.weight, layer.bias
    solution = replace(make_solution(layer, inputs=inputs),
                       weight_offset=torch.rand(layer.geometry.out_channels))
    for _ in range(2):  # written over, the float weights are still those of the float layer
        apply(layer, solution)
        assert not torch.equal(layer(x), float_layer(x))
        assert torch.equal(layer.float_forward(x), float_layer(x))
        assert torch.equal(layer.float_rows(), weight_rows(float_layer.weight, layer.geometry))
    expected = layer(x)
    layer.to_float()
    assert not layer.quantized and layer.weight is weight and layer.bias is bias
    assert torch.equal(layer(x), float_layer(x)) and torch.equal(layer.float_forward(x), layer(x))
    assert set(layer.state_dict()) == set(float_layer.state_dict())
    apply(layer, solution)
    assert torch.equal(layer(x), expected)
    layer.release_float()
    assert torch.equal(layer(x), expected)
    with pytest.raises(RuntimeError, match='released.*Load the float model again'):
        layer.float_forward(x)
    with pytest.raises(RuntimeError, match='released'):
        layer.to_float()


def test_kept_float_weights_are_no_state_and_go_where_the_layer_goes(float_layer):
    layer, x = quantized(float_layer), make_input(float_layer)
    apply(layer, make_solution(layer))
    assert not {'weight'} & set(layer.state_dict())
    moved = copy.deepcopy(layer).double()
    torch.testing.assert_close(moved.float_forward(x.double()).float(), float_layer(x))
    loaded = quantized(float_layer)
    loaded.expect(layer.plan_row())
    with pytest.raises(RuntimeError, match='loaded from a quantized checkpoint'):
        loaded.float_forward(x)
