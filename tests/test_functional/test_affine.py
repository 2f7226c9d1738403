"""Affine round trips: exact on the grid, half a step off it, exact at zero."""

import pytest
import torch

from mmbitsplit.functional import (
    code_range,
    dequantize,
    fake_quantize,
    product_input,
    quantize,
)
from mmbitsplit.structures import QParams

SYMMETRIES = ['unsigned', 'signed', 'narrow', 'asymmetric']


def make_qparams(symmetry, num_bits, channels=1, unit=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high = code_range(num_bits, signed=symmetry in ('signed', 'narrow'),
                           narrow_range=symmetry == 'narrow')
    scale = torch.rand(channels, generator=generator) + 0.1
    zero_point = torch.zeros(channels)
    if symmetry == 'asymmetric':
        zero_point = torch.randint(low, high + 1, (channels,), generator=generator).float()
    return QParams(scale, zero_point, low, high, unit)


def random_input(*shape, seed=1):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('bits', range(2, 9))
def test_code_ranges(bits):
    assert code_range(bits, signed=False) == (0, 2 ** bits - 1)
    assert code_range(bits, signed=True) == (-2 ** (bits - 1), 2 ** (bits - 1) - 1)
    low, high = code_range(bits, signed=True, narrow_range=True)
    assert low == -high
    assert high == 2 ** (bits - 1) - 1


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('symmetry', SYMMETRIES)
def test_round_trip_is_exact_on_the_grid(symmetry, bits):
    qparams = make_qparams(symmetry, bits)
    codes = torch.arange(qparams.quant_min, qparams.quant_max + 1.0).unsqueeze(0)
    real = dequantize(codes, qparams)
    assert torch.equal(quantize(real, qparams), codes)
    assert torch.equal(fake_quantize(real, qparams), real)


@pytest.mark.parametrize('bits', [2, 3, 8])
@pytest.mark.parametrize('symmetry', SYMMETRIES)
def test_error_is_half_a_step_inside_and_the_end_of_the_range_outside(symmetry, bits):
    qparams = make_qparams(symmetry, bits)
    ends = dequantize(torch.tensor([[qparams.quant_min, qparams.quant_max]]), qparams)
    low, high = ends.flatten().tolist()
    inside = torch.linspace(low, high, 1001).unsqueeze(0)
    error = (fake_quantize(inside, qparams) - inside).abs()
    assert error.max() <= 0.5 * qparams.scale * (1 + 1e-4)
    outside = fake_quantize(torch.tensor([[low - 9.0, high + 9.0]]), qparams)
    assert torch.equal(outside, ends)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('symmetry', SYMMETRIES)
def test_zero_stays_exactly_zero(symmetry, seed):
    qparams = make_qparams(symmetry, 4, channels=3, seed=seed)
    zeros = torch.zeros(2, 3, 5)
    assert torch.equal(fake_quantize(zeros, qparams), zeros)
    assert torch.equal(product_input(zeros, qparams), zeros)
    assert torch.equal(quantize(zeros, qparams)[0, :, 0], qparams.zero_point)


@pytest.mark.parametrize(('shape', 'channel_dim'), [
    ((2, 3, 4, 5), 1), ((3, 7), 0), ((2, 5, 3), -1)])
@pytest.mark.parametrize('function', [quantize, dequantize, fake_quantize, product_input])
def test_per_channel_equals_a_loop_over_channels(function, shape, channel_dim):
    qparams = make_qparams('asymmetric', 4, channels=3)
    x = random_input(*shape)
    whole = function(x, qparams, channel_dim)
    assert whole.shape == x.shape
    for channel in range(3):
        one = QParams(qparams.scale[channel:channel + 1], qparams.zero_point[channel:channel + 1],
                      qparams.quant_min, qparams.quant_max, qparams.unit)
        assert torch.equal(whole.select(channel_dim, channel),
                           function(x.select(channel_dim, channel).unsqueeze(0), one)[0])


def test_ties_go_to_the_even_code():
    qparams = QParams(torch.tensor([0.25]), torch.tensor([0.0]), -8, 7)
    x = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]]) * 0.25
    assert quantize(x, qparams).tolist() == [[-2, -2, 0, 0, 2, 2]]


@pytest.mark.parametrize('symmetry', SYMMETRIES)
def test_codes_are_integers_in_range_and_rise_with_the_input(symmetry):
    qparams = make_qparams(symmetry, 3)
    codes = quantize(torch.linspace(-20, 20, 999).unsqueeze(0), qparams)
    assert torch.equal(codes, codes.round())
    assert codes.min() == qparams.quant_min
    assert codes.max() == qparams.quant_max
    assert (codes.diff() >= 0).all()


@pytest.mark.parametrize('function', [quantize, dequantize, fake_quantize, product_input])
@pytest.mark.parametrize('unit', [False, True])
def test_input_is_never_modified(function, unit):
    x = random_input(2, 3, 4)
    before = x.clone()
    function(x, make_qparams('asymmetric', 4, channels=3, unit=unit))
    assert torch.equal(x, before)


def test_product_input_is_the_round_trip_with_or_without_the_scale():
    x = random_input(2, 3, 4)
    real = make_qparams('asymmetric', 4, channels=3)
    unit = make_qparams('asymmetric', 4, channels=3, unit=True)
    assert torch.equal(product_input(x, real), fake_quantize(x, real))
    codes = product_input(x, unit)
    assert torch.equal(codes, codes.round())
    assert torch.equal(codes * unit.scale.view(-1, 1), fake_quantize(x, unit))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_dtype_of_the_input_is_kept_with_an_integer_zero_point(dtype):
    qparams = QParams(torch.tensor([0.1]), torch.tensor([7], dtype=torch.int32), 0, 15)
    x = random_input(1, 9).to(dtype)
    for function in (quantize, fake_quantize, product_input):
        assert function(x, qparams).dtype == dtype
