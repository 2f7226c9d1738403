"""Every kind of layer and input computes in a runtime what it computes in torch."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mmbitsplit.export.onnx.operator_check import executed_operators

LAYERS = {
    'conv': lambda: nn.Conv2d(6, 4, 3, 2, 1),
    'conv_no_bias': lambda: nn.Conv2d(6, 4, (3, 1), bias=False),
    'grouped_dilated': lambda: nn.Conv2d(6, 4, 3, padding=2, dilation=2, groups=2),
    'depthwise': lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    'same_even': lambda: nn.Conv2d(6, 4, 4, padding='same'),
    'reflect': lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode='reflect'),
    'replicate': lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode='replicate'),
    'circular': lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode='circular'),
    'transposed': lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, 1),
    'transposed_grouped': lambda: nn.ConvTranspose2d(6, 4, 3, 2, groups=2, bias=False),
    'linear': lambda: nn.Linear(6, 4),
    'linear_rank_3': lambda: nn.Linear(6, 4),
}
INPUTS = ['float', 'tensor', 'ecaq', 'signed', 'asymmetric', 'zero_points', 'per_channel']
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def make_input(name: str) -> torch.Tensor:
    shape = {'linear': (3, 6), 'linear_rank_3': (2, 5, 6)}.get(name, (2, 6, 9, 8))
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('inputs', INPUTS)
@pytest.mark.parametrize('name', LAYERS)
def test_a_layer_computes_the_same(layer_of, write_chain, run_file, name, inputs, runtime):
    if runtime == 'openvino':
        pytest.importorskip('openvino')
    layer, x = layer_of(LAYERS[name](), inputs), make_input(name)
    path, _, _ = write_chain([layer], x)
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(run_file(path, x, runtime), expected, rtol=1e-5, atol=1e-5)


SAME = {
    'same_upper': lambda: nn.Conv2d(6, 4, 3, 2), 'same_lower': lambda: nn.Conv2d(6, 4, 3, 2),
    'same_upper_even': lambda: nn.Conv2d(6, 4, (4, 1), (1, 3), bias=False),
    'same_upper_dilated': lambda: nn.Conv2d(6, 6, 3, 2, dilation=2, groups=6),
}


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('inputs', ['float', 'tensor', 'asymmetric', 'zero_points', 'per_channel'])
@pytest.mark.parametrize('name', SAME)
def test_padding_by_a_rule(layer_of, write_chain, run_file, name, inputs, runtime):
    if runtime == 'openvino':
        pytest.importorskip('openvino')
    layer = layer_of(SAME[name](), inputs)
    layer.geometry = dataclasses.replace(layer.geometry, auto_padding=name[:10])
    for size in ((9, 8), (8, 9), (11, 11)):
        x = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(3))
        path, _, _ = write_chain([layer], x)
        with torch.no_grad():
            torch.testing.assert_close(run_file(path, x, runtime), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('bits', [2, 3, 4])
@pytest.mark.parametrize('name', ['conv', 'depthwise', 'transposed', 'transposed_grouped',
                                  'linear', 'linear_rank_3'])
def test_four_bit_storage_computes_the_same(layer_of, write_chain, run_file, name, bits):
    layer, x = layer_of(LAYERS[name](), bits=bits), make_input(name)
    path, _, _ = write_chain([layer], x, format='int4')
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(run_file(path, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('inputs', ['tensor', 'ecaq', 'asymmetric', 'signed', 'per_channel'])
@pytest.mark.parametrize('input_bits', [2, 4, 7])
def test_inputs_of_fewer_bits_are_clipped_to_their_codes(layer_of, write_chain, run_file,
                                                        inputs, input_bits):
    layer, x = layer_of(LAYERS['conv'](), inputs, input_bits=input_bits), make_input('conv')
    path, _, _ = write_chain([layer], x)
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(run_file(path, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('inputs', ['tensor', 'ecaq', 'per_channel'])
def test_one_input_channel(layer_of, write_chain, run_file, inputs):
    """To onnxruntime a list of one scale is one scale, beside which it quantizes float weights."""
    layer = layer_of(nn.Conv2d(1, 4, 3), inputs, bits=8)
    x = torch.randn(1, 1, 9, 8, generator=torch.Generator().manual_seed(3))
    path, _, _ = write_chain([layer], x)
    with torch.no_grad():
        torch.testing.assert_close(run_file(path, x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('inputs', ['asymmetric', 'zero_points'])
def test_padding_is_zero_after_the_zero_point_is_taken_off(layer_of, write_chain, run_file,
                                                          inputs, runtime):
    """A constant input below the range: only where padding enters do outputs differ."""
    pytest.importorskip(runtime)
    layer = layer_of(nn.Conv2d(2, 3, 3, padding=1), inputs)
    x = torch.full((1, 2, 6, 6), -100.0)
    path, _, _ = write_chain([layer], x)
    found = run_file(path, x, runtime)
    with torch.no_grad():
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[..., 0, 0], found[..., 3, 3])


@pytest.mark.parametrize('module', [
    lambda: nn.Conv2d(6, 6, 3, padding=1), lambda: nn.Conv2d(6, 6, 3, padding=1, bias=False),
    lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6)], ids=['bias', 'no_bias', 'depthwise'])
@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_zero_points_of_channels_are_no_hindrance_to_integer_kernels(
        layer_of, chain_of, write_chain, run_file, module, runtime):
    """And none to the exact sum: a double-precision sum over codes less zero point."""
    pytest.importorskip(runtime)
    layers = [layer_of(module(), 'zero_points'), layer_of(nn.Conv2d(6, 4, 1), 'tensor', seed=1)]
    x = make_input('conv')
    path, _, _ = write_chain(layers, x)
    counts = executed_operators(path, runtime)
    assert counts.integer_convolutions >= (1 if runtime == 'onnxruntime' else 2)
    first, second = layers
    points = first.qparams.zero_point.double().view(1, -1, 1, 1)
    codes = torch.round(x.double() / first.qparams.scale.view(1, -1, 1, 1).double())
    codes = codes.clamp(-points, 255 - points)  # zero, also where padded
    sums = nn.functional.conv2d(codes, first.codes.double(), padding=1,
                                groups=first.geometry.groups)
    sums *= first.weight_scale.view(1, -1, 1, 1)
    if first.bias is not None:
        sums += first.bias.detach().view(1, -1, 1, 1)
    with torch.no_grad():
        expected = second(sums.float().relu())
        torch.testing.assert_close(chain_of(layers)(x), expected, rtol=1e-5, atol=1e-5)
    one_code = second.weight_scale.max() * second.codes.abs().max()
    apart = (run_file(path, x, runtime) - expected).abs()
    assert (apart <= 1e-5).float().mean() > 0.95  # a value between two codes may take the other
    assert apart.max() <= 2 * one_code


def stored(path):
    return {tensor.name: tensor for tensor in onnx.load(str(path)).graph.initializer}


def test_codes_are_stored_as_they_are(layer_of, write_chain):
    layer, x = layer_of(LAYERS['conv'](), bits=3), make_input('conv')
    for format, kind in (('int8', onnx.TensorProto.INT8), ('int4', onnx.TensorProto.INT4)):
        tensor = stored(write_chain([layer], x, format=format)[0])['0.codes']
        assert tensor.data_type == kind
        assert tensor.HasField('raw_data')
        codes = onnx.numpy_helper.to_array(tensor).astype(np.int8)
        np.testing.assert_array_equal(codes, layer.codes.numpy())
        assert abs(codes).max() == 3


@pytest.mark.parametrize(('bits', 'least', 'most'), [(4, 0.5, 0.55), (5, 1.0, 1.0)])
def test_four_bit_files_are_half_as_large(layer_of, write_chain, bits, least, most):
    layer, x = layer_of(nn.Conv2d(64, 64, 3), bits=bits), torch.zeros(1, 64, 5, 5)
    sizes = [write_chain([layer], x, format, format=format)[0].stat().st_size
             for format in ('int4', 'int8')]
    assert least <= sizes[0] / sizes[1] <= most


def test_only_standard_operators_are_left(layer_of, write_chain):
    layer, x = layer_of(LAYERS['conv']()), make_input('conv')
    model = onnx.load(str(write_chain([layer], x)[0]))
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {''}
    assert [node.op_type for node in model.graph.node] == [
        'QuantizeLinear', 'DequantizeLinear', 'Cast', 'Mul', 'Conv']


def test_a_layer_between_quantizers_is_dequantized_in_the_standard_way(layer_of, write_chain):
    layers = [layer_of(nn.Conv2d(6, 4, 3), 'tensor'), layer_of(nn.Conv2d(4, 4, 1), 'tensor')]
    model = onnx.load(str(write_chain(layers, make_input('conv'))[0]))
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    convs = [node for node in model.graph.node if node.op_type == 'Conv']
    assert [makers[conv.input[1]] for conv in convs] == ['DequantizeLinear', 'Mul']


def test_a_quantized_output_goes_through_its_own_quantizer(layer_of, write_chain, run_file):
    from mmbitsplit.functional import fake_quantize
    from mmbitsplit.structures import QParams
    layer, x = layer_of(LAYERS['conv']()), make_input('conv')
    after = QParams(torch.tensor([0.03]), torch.tensor([120.0]), 0, 255, unit=False)
    with torch.no_grad():
        plain = layer(x)
    expected = fake_quantize(plain, after)
    layer.quantize_output(after)
    path, _, model = write_chain([layer], x)
    kinds = [node.op_type for node in model.graph]
    assert kinds[0] == 'Div'  # the scales a channel of the input
    assert kinds[-2:] == ['QuantizeLinear', 'DequantizeLinear']
    found = run_file(path, x, optimize=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-4)
