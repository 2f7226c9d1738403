"""Layers that multiply bytes on GPUs give what they give in float, but for the rounding of float32.

Without a GPU torch's own kernels run on the CPU; ``test_triton_products`` holds Triton's to them.
"""

import copy
import importlib.util
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from integer_oracle import exact
from torch import nn

from mmbitsplit.functional import code_range
from mmbitsplit.models import QuantizedLayer, integer_layers, to_integer
from mmbitsplit.models.layers import gpu_support, integer_devices
from mmbitsplit.models.layers.gpu_product import GpuProduct
from mmbitsplit.models.layers.gpu_weight import GpuWeight, why_float_on_gpu
from mmbitsplit.models.layers.integer_weight import why_never
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.surgery import integers
from mmbitsplit.structures import LayerGeometry, LayerSolution, QParams
from mmbitsplit.structures.products import ProductSolution

HAS_GPU = torch.cuda.is_available()
DEVICE = 'cuda' if HAS_GPU else 'cpu'
KERNELS = ['torch', pytest.param('triton', marks=pytest.mark.skipif(
    not HAS_GPU or importlib.util.find_spec('triton') is None, reason='needs a GPU and Triton'))]

LAYERS = {
    'plain': LayerGeometry('conv2d', 8, 16, kernel_size=(3, 3), padding=(1, 1)),
    'stride': LayerGeometry('conv2d', 64, 16, kernel_size=(3, 2), padding=(1, 0), stride=(2, 1)),
    'pointwise': LayerGeometry('conv2d', 8, 16),
    'dilation': LayerGeometry('conv2d', 8, 16, kernel_size=(3, 3), padding=(2, 2),
                              dilation=(2, 2)),
    'reflected': LayerGeometry('conv2d', 8, 16, kernel_size=(3, 3), pre_padding=(1, 1, 1, 1),
                               pre_padding_mode='reflect'),
    'uneven': LayerGeometry('conv2d', 8, 16, kernel_size=(3, 3), stride=(2, 2),
                            auto_padding='same_upper'),
    'linear': LayerGeometry('linear', 64, 17)}
INPUTS = {  # zero points, lowest and highest code, unit, scale a channel
    'relu': (0, 0, 255, True, False), 'asymmetric': (93, 0, 255, True, False),
    'signed': (0, -128, 127, True, False), 'high': (200, 0, 255, True, False),
    'narrow': (5, 0, 15, True, False),
    'real': (17, 0, 255, False, False), 'ecaq': (11, 0, 255, True, True)}


def layer_of(geometry, inputs, num_bits, offset, seed=0):
    """A layer with random codes, and an input that leaves the range of its codes at both ends."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    shape, channels = geometry.weight_shape, geometry.out_channels
    point, low, high, unit, each = inputs
    count = geometry.in_channels if each else 1
    smallest, largest = code_range(num_bits, signed=True)
    codes = torch.randint(smallest, largest + 1, shape, generator=generator, dtype=torch.int8)
    layer = QuantizedLayer(geometry, torch.zeros(shape), torch.zeros(channels)).to(DEVICE)
    layer.install(LayerSolution(
        codes=codes, num_bits=num_bits, weight_scale=draw(channels).abs() + 0.01,
        bias=None if offset else draw(channels),
        qparams=QParams(0.2 / (high - low) * (draw(count).abs() + 30),
                        torch.full((count,), point), low, high, unit=unit),
        weight_offset=draw(channels) if offset else None))
    layer.release_float()
    size = (2, 5, geometry.in_channels) if geometry.kind == 'linear' else (
        2, geometry.in_channels, 9, 11)
    return layer.eval(), 3 * draw(*size).to(DEVICE)


def turn(layer, kernels='torch'):
    """What ``to_integer`` does on a GPU."""
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    assert why_never(layer.geometry, weight, inputs) is None
    assert why_float_on_gpu(layer.geometry, inputs.qparams) is None
    layer.install_weight(GpuWeight(weight, inputs, kernels=kernels))
    return layer


def assert_close(y, expected):
    assert y.shape == expected.shape
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('inputs', INPUTS)
@pytest.mark.parametrize('geometry', LAYERS)
def test_layers(geometry, inputs, kernels):
    geometry = LAYERS[geometry]
    for num_bits, offset in ((4, False), (8, True)):
        layer, x = layer_of(geometry, INPUTS[inputs], num_bits, offset)
        expected, codes = exact(layer, x), layer.codes.clone()
        turn(layer, kernels)
        assert layer.integers and torch.equal(layer.codes, codes)
        with torch.no_grad():
            assert_close(layer(x), expected)
            assert_close(layer(x[0]), expected[0])
            other = x.transpose(0, 1) if geometry.kind == 'linear' else x.contiguous(
                memory_format=torch.channels_last)
            assert_close(layer(other), exact(layer, other))


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('b', ['signed', 'a head'])
@pytest.mark.parametrize('a', ['softmax', 'asymmetric', 'a head'])
def test_products(a, b, kernels):
    sides = {'softmax': ([1 / 255], 0, 0, 255), 'signed': ([0.03], 0, -128, 127),
             'asymmetric': ([0.03], 77, 0, 255), 'a head': ([0.02, 0.03, 0.05], 200, 0, 255)}
    product = Product()
    product.install(ProductSolution(*(QParams(
        torch.tensor(scales), torch.full((len(scales),), point), low, high, unit=True)
        for scales, point, low, high in (sides[a], sides[b]))), DEVICE)
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(2, 3, 7, 40, generator=generator).to(DEVICE)
    y = 3 * torch.randn(2, 9, 3, 40, generator=generator).to(DEVICE).permute(0, 2, 3, 1)
    expected = product(x, y)
    product._bytes = GpuProduct(product.a_quantizer, product.b_quantizer, kernels)
    product.integers = True
    with torch.no_grad():
        assert_close(product(x, y), expected)
        assert_close(product(x[:1], y[:1]), expected[:1])
    assert product._bytes.used and product.left is None


def test_codes_of_four_bits_take_half_a_byte():
    for num_bits, share in ((4, 0.5), (5, 1.0)):
        layer, _ = layer_of(LAYERS['linear'], INPUTS['relu'], num_bits, False)
        weight = turn(layer).weight_quantizer
        assert weight.nbytes == share * weight.codes.numel() + 8 * 17
        assert sum(value.numel() for value in vars(weight).values()
                   if isinstance(value, torch.Tensor)) == 0  # nothing beside


def test_back_again_and_what_others_see():
    layer, x = layer_of(LAYERS['stride'], INPUTS['asymmetric'], 4, True)
    before, weight, state = layer(x), layer.weight.clone(), layer.state_dict()
    turn(layer)
    assert torch.equal(layer.weight, weight)
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in state.items())
    with torch.no_grad():
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other.integers and torch.equal(other(x), layer(x))
    with pytest.raises(ValueError, match='to_integer'):
        layer.double()
    to_integer(layer, False)
    assert not layer.integers and torch.equal(layer(x), before)


def test_where_floats_are_taken_and_what_is_not_a_number():
    layer, x = layer_of(LAYERS['plain'], INPUTS['relu'], 4, False)
    turn(layer)
    with torch.no_grad():
        missing = x.clone()
        missing[0, 0, 0, 0] = float('nan')
        assert layer(missing).isnan().all()
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_what_cannot():
    for geometry, word in (
            (LayerGeometry('conv2d', 8, 8, kernel_size=(3, 3), groups=8), 'groups'),
            (LayerGeometry('conv_transpose2d', 8, 8, kernel_size=(3, 3)), 'transpose'),
            (LayerGeometry('linear', 65536, 1), '32 bits')):
        layer, _ = layer_of(geometry, INPUTS['relu'], 4, False)
        weight, inputs = layer.weight_quantizer, layer.input_quantizer
        assert word in (why_never(geometry, weight, inputs)
                        or why_float_on_gpu(geometry, inputs.qparams))


def test_without_triton_a_warning_says_what_computes_and_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.warns(UserWarning, match=r'torch\._int_mm.*pip install triton'):
        found = gpu_support.choose_kernels.__wrapped__(torch.device(DEVICE))
    assert found == ('torch', None)


def test_kernels_that_are_wrong_are_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    kernels = copy.copy(gpu_support.kernels_named('torch').__dict__)
    wrong = type('Wrong', (), {**kernels, 'multiply': staticmethod(
        lambda *args: kernels['multiply'](*args) + 1)})
    monkeypatch.setattr(gpu_support, 'kernels_named', lambda name: wrong)
    chosen, why = gpu_support.choose_kernels.__wrapped__(torch.device(DEVICE))
    assert chosen is None and 'pip install triton; torch gives wrong products' in why


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Without a GPU: the CPU is taken for one."""
    if not HAS_GPU:
        for name, made in (('IntegerWeight', GpuWeight), ('IntegerProduct', GpuProduct)):
            monkeypatch.setattr(integer_devices, name, partial(made, kernels='torch'))
        monkeypatch.setattr(integer_devices, 'why_no_integers', lambda: None)
        monkeypatch.setattr(integer_devices, 'why_no_bytes', why_float_on_gpu)


def test_to_integer_on_a_gpu(as_on_a_gpu):
    layer, x = layer_of(LAYERS['plain'], INPUTS['asymmetric'], 4, False)
    apart, _ = layer_of(LayerGeometry('conv2d', 16, 16, kernel_size=(3, 3), groups=16),
                        INPUTS['relu'], 4, False)
    model = nn.Sequential(layer, apart).eval()
    with torch.no_grad():
        expected = model(x)
        done = to_integer(model)
        assert done.integer == ('0',) and 'groups' in done.left['1']
        assert integer_layers(model).integer == ('0',)
        assert isinstance(layer.weight_quantizer, GpuWeight)
        assert_close(model(x), expected)


def test_auto_stays_in_float_on_gpus(monkeypatch):
    """Until it is measured there."""
    layer, x = layer_of(LAYERS['plain'], INPUTS['asymmetric'], 4, False)
    monkeypatch.setattr(integers, '_device', lambda model: torch.device('cuda'))
    assert to_integer(layer, 'auto').left == {'': integers.ASK_ON_GPUS} and not layer.integers


def test_several_widths_on_a_gpu(as_on_a_gpu):
    """Switching makes the bytes of the width in use there, too."""
    layer, x = layer_of(LAYERS['plain'], INPUTS['asymmetric'], 8, False)
    whole = layer.solution()
    narrow = replace(whole, codes=whole.codes >> 4, num_bits=4,
                     weight_scale=16 * whole.weight_scale)
    layer.install(replace(whole, narrower=(narrow,)))
    to_integer(layer)
    for num_bits in (8, 4):
        layer.use(num_bits)
        with torch.no_grad():
            assert layer.weight_quantizer.integer.num_bits == num_bits
            assert_close(layer(x), exact(layer, x))
