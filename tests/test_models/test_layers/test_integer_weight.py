"""Layers that multiply bytes give what they give in float, but for the rounding of float32."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from integer_layers import INPUTS, assert_close, assert_same, layer_of
from integer_oracle import exact
from torch import nn

from mmbitsplit.models import to_integer
from mmbitsplit.models.layers import integer_rows
from mmbitsplit.models.layers.integer_packing import PATIENCE
from mmbitsplit.models.layers.integer_rows import FEW
from mmbitsplit.models.layers.integer_support import why_no_integers
from mmbitsplit.structures import LayerGeometry

pytestmark = pytest.mark.skipif(why_no_integers() is not None, reason='torch without bytes')

CONVOLUTIONS = {
    'plain': dict(kernel_size=(3, 3), padding=(1, 1)),
    'stride': dict(kernel_size=(3, 3), padding=(1, 1), stride=(2, 2)),
    'pointwise': {},
    'groups': dict(kernel_size=(3, 3), padding=(1, 0), groups=4),
    'depthwise': dict(kernel_size=(3, 5), padding=(1, 2), groups=8),
    'dilation': dict(kernel_size=(3, 3), padding=(2, 2), dilation=(2, 2)),
    'reflected': dict(kernel_size=(3, 3), pre_padding=(1, 1, 1, 1), pre_padding_mode='reflect'),
    'uneven': dict(kernel_size=(3, 3), stride=(2, 2), auto_padding='same_upper'),
}
@pytest.mark.parametrize('inputs', INPUTS)
@pytest.mark.parametrize('convolution', CONVOLUTIONS)
def test_convolutions(convolution, inputs, monkeypatch):
    monkeypatch.setattr(integer_rows, 'FEW', 0)
    geometry = LayerGeometry('conv2d', 8, 16, **CONVOLUTIONS[convolution])
    for offset in (False, True):
        layer, x = layer_of(geometry, INPUTS[inputs], offset=offset, bias=not offset)
        expected = exact(layer, x)
        assert to_integer(layer).left == {}
        assert_same(layer, x, expected)
        for value in (x.contiguous(memory_format=torch.channels_last),
                      torch.cat([x, x], -1)[..., :11]):
            assert_close(layer(value), expected)
        assert_close(layer(x[0]), expected[0])


@pytest.mark.parametrize('inputs', INPUTS)
@pytest.mark.parametrize('groups', [1, 4])
def test_transposed_convolutions_without_overlap(groups, inputs):
    geometry = LayerGeometry('conv_transpose2d', 8, 16, kernel_size=(2, 3), stride=(2, 3),
                             groups=groups)
    for offset, num_bits in ((False, 4), (True, 8)):
        layer, x = layer_of(geometry, INPUTS[inputs], num_bits, offset)
        expected, codes = exact(layer, x), layer.codes.clone()
        assert to_integer(layer).left == {}
        assert torch.equal(layer.codes, codes)
        assert_same(layer, x, expected)
        assert_close(layer(x.contiguous(memory_format=torch.channels_last)), expected)
        assert_close(layer(x[0]), expected[0])


@pytest.mark.parametrize('kind', ['conv2d', 'conv_transpose2d'])
def test_maps_lie_in_memory_as_torch_has_them(kind):
    # mmcv's RoIAlign reads memory as if channels came first, whatever the strides say.
    geometry = LayerGeometry(kind, 8, 16, kernel_size=(2, 2), stride=(2, 2))
    layer, x = layer_of(geometry, INPUTS['asymmetric'])
    for value in (x, x.contiguous(memory_format=torch.channels_last)):
        strides = layer(value).stride()
        to_integer(layer)
        assert layer.integers and layer(value).stride() == strides
        to_integer(layer, False)


def test_layers_left_in_float_give_maps_channels_last_where_all_others_do():
    geometry = LayerGeometry('conv2d', 8, 16, kernel_size=(3, 3), padding=(1, 1))
    first, x = layer_of(geometry, INPUTS['asymmetric'])
    first.quantize_input(None)
    expected, net = first(x), nn.Sequential(first, layer_of(
        LayerGeometry('conv2d', 16, 8), INPUTS['asymmetric'])[0])
    assert list(to_integer(net, channels_last=True).left) == ['0']
    found = first(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, expected)
    to_integer(net, False)
    assert torch.equal(first(x), expected) and first(x).stride() == expected.stride()


@pytest.mark.parametrize('inputs', INPUTS)
@pytest.mark.parametrize('few', [0, FEW])
def test_linear_layers(inputs, few, monkeypatch):
    monkeypatch.setattr(integer_rows, 'FEW', few)
    geometry = LayerGeometry('linear', 8, 17)
    for offset in (False, True):
        layer, x = layer_of(geometry, INPUTS[inputs], offset=offset, bias=not offset)
        expected = exact(layer, x)
        assert to_integer(layer).left == {}
        assert_same(layer, x, expected)
        assert_same(layer, x[0, 0], expected[0, 0])
        assert_same(layer, x.transpose(0, 1), expected.transpose(0, 1))


@pytest.mark.parametrize('num_bits', range(2, 9))
def test_widths_of_weights(num_bits):
    layer, x = layer_of(LayerGeometry('conv2d', 8, 16, kernel_size=(3, 3)), INPUTS['asymmetric'],
                        num_bits=num_bits)
    expected, codes = exact(layer, x), layer.codes.clone()
    assert to_integer(layer).left == {} and torch.equal(layer.codes, codes)
    assert_same(layer, x, expected)


def test_what_cannot():
    plain = dict(kernel_size=(3, 3))
    channels = ([0.1] * 8, [0], 0, 255, False)
    for geometry, inputs, word in (
            (LayerGeometry('conv_transpose2d', 8, 8, **plain), INPUTS['relu'], 'transpose'),
            (LayerGeometry('conv2d', 8, 8, **plain), channels, 'per_channel')):
        layer, x = layer_of(geometry, inputs)
        before = layer(x)
        assert word in to_integer(layer, 'auto').left['']
        assert torch.equal(layer(x), before)
        with pytest.raises(ValueError, match='none of 1 layers'):
            to_integer(layer)


def test_back_again_and_what_others_see():
    layer, x = layer_of(LayerGeometry('conv2d', 8, 16, **CONVOLUTIONS['groups']),
                        INPUTS['asymmetric'], offset=True)
    before, weight, state = layer(x), layer.weight.clone(), layer.state_dict()
    to_integer(layer)
    assert torch.equal(layer.weight, weight)
    assert layer.state_dict().keys() == state.keys()
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in state.items())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.integers and torch.equal(other(x), layer(x))
    to_integer(layer, False)
    assert not layer.integers and torch.equal(layer(x), before)


def test_where_floats_are_taken():
    layer, x = layer_of(LayerGeometry('conv2d', 8, 16), INPUTS['relu'])
    missing = x.clone()
    missing[0, 0, 0, 0] = float('nan')
    before = layer(missing)
    to_integer(layer)
    assert torch.equal(layer(missing).isnan(), before.isnan()) and before.isnan().any()
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match='to_integer'):
        layer.double()


def test_a_shape_that_changes():
    layer, x = layer_of(LayerGeometry('conv2d', 8, 16, **CONVOLUTIONS['plain']), INPUTS['signed'])
    expected = exact(layer, x)
    to_integer(layer)
    for size in (11, 11, 11, 11, 5, 11, 5, 5, 5, 5):
        y = layer(x[..., :size].contiguous())
        assert (y[..., :size - 1] - expected[..., :size - 1]).abs().max() <= 1e-5 * expected.max()


def test_weights_are_held_once():
    layer, x = layer_of(LayerGeometry('conv2d', 64, 64, kernel_size=(3, 3)), (
        [0.1], [0], 0, 255, True))
    to_integer(layer)
    quantizer = layer.weight_quantizer
    for _ in range(PATIENCE + 1):
        layer(x)
        assert quantizer.nbytes <= 0.3 * 4 * quantizer.codes.numel()
    assert sum(value.numel() for value in vars(quantizer).values()
               if isinstance(value, torch.Tensor)) < 1000


SAME = '''
import torch
import test_integer_weight as cases
from mmbitsplit.models import to_integer
from mmbitsplit.models.layers.integer_support import saturates_pairs
from mmbitsplit.structures import LayerGeometry
assert saturates_pairs()
from mmbitsplit.models.layers.product import Product
from mmbitsplit.structures import QParams
from mmbitsplit.structures.products import ProductSolution
convolution = LayerGeometry('conv2d', 8, 16, kernel_size=(3, 3), padding=(1, 1))
for geometry, bits, inputs, halved in (
        (convolution, 8, 'asymmetric', True), (convolution, 7, 'asymmetric', False),
        (convolution, 8, 'narrow', False), (LayerGeometry('linear', 8, 16), 8, 'ecaq', True)):
    layer, x = cases.layer_of(geometry, cases.INPUTS[inputs], num_bits=bits,
                              offset=inputs == 'asymmetric')
    layer.weight_quantizer.codes.sign_().mul_(2 ** (bits - 1) - 1)
    layer.weight_quantizer.codes.flatten()[:3] = torch.tensor([-2 ** (bits - 1), 0, 1])
    layer.weight_quantizer.refresh()
    expected, x, codes = cases.exact(layer, 100 * x), 100 * x, layer.codes.clone()
    to_integer(layer)
    assert layer.weight_quantizer.nbytes // codes.numel() == (2 if halved else 1)
    assert torch.equal(layer.codes, codes)
    cases.assert_same(layer, x, expected)
    few = geometry.kind == 'linear'  # whole in one compiled call
    assert layer.weight_quantizer.nbytes // codes.numel() == (2 if halved and not few else 1)
    assert torch.equal(layer.codes, codes)
product, grid = Product().eval(), lambda low, high: QParams(
    torch.tensor([1.0]), torch.tensor([0]), low, high, unit=True)
product.install(ProductSolution(grid(0, 255), grid(-128, 127)))
to_integer(product)
a, b = torch.full((1, 64, 64), 255.0), torch.tensor([127.0, -128.0, 1.0]).repeat(22)[:64]
b = b.repeat(64, 1).unsqueeze(0)
assert torch.equal(product.byte_product().product(a, b), a @ b)
'''


def test_without_vnni_it_is_exact():
    helpers = str(Path(__file__).resolve().parents[2] / 'helpers')
    environment = {**os.environ, 'ONEDNN_MAX_CPU_ISA': 'AVX2', 'PYTHONPATH': os.pathsep.join(
        filter(None, (helpers, os.environ.get('PYTHONPATH'))))}
    done = subprocess.run([sys.executable, '-c', SAME], env=environment, capture_output=True,
                          text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr


def test_what_is_not_known():
    with pytest.raises(ValueError, match='integer=3'):
        to_integer(nn.Linear(1, 1), 3)
    with pytest.raises(ValueError, match='no quantized layer'):
        to_integer(nn.Linear(1, 1))
