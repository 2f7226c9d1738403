"""Affine round trips: exact on the grid, half a step off it, exact at zero."""

import pytest
import torch

from mmbitsplit.functional import code_range, dequantize, fake_quantize, product_input, quantize
from mmbitsplit.functional.kernels import round_trip
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
    return QParams(scale, zero_point, low, high, unit=unit)


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
                      qparams.quant_min, qparams.quant_max, unit=qparams.unit)
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


LAYOUTS = {
    'contiguous': lambda x: x,
    'transposed': lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    'strided': lambda x: torch.stack([x, -x], -1)[..., 0],
    'slice': lambda x: torch.cat([x, x], -1)[..., :x.shape[-1]],
    'expanded': lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize('least', [0, 1e18], ids=['compiled', 'plain'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('shape', 'channel_dim'), [
    ((4, 3, 5, 6), 1), ((4, 3, 5, 6), -3), ((4, 5, 3, 6), 2), ((3, 4, 5), 0), ((3, 7), 0),
    ((4, 3), 1), ((4, 5, 3), -1), ((4, 5, 3), 2), ((4, 0, 3), -1), ((0, 3, 4), 1), ((3,), 0)],
    ids=str)
def test_product_input_is_the_code_less_the_zero_point(shape, channel_dim, layout, dtype, least,
                                                       monkeypatch):
    """In every channel dimension and memory layout, on the compiled and on the plain path."""
    monkeypatch.setattr(round_trip, 'LEAST_ELEMENTS', least)
    x = LAYOUTS[layout](random_input(*shape).to(dtype))
    along = [1] * x.dim()
    along[channel_dim] = -1
    for channels in (1, 3):
        for unit in (True, False):
            qparams = make_qparams('asymmetric', 4, channels, unit)
            expected = quantize(x, qparams, channel_dim) - qparams.zero_point.view(along)
            if not unit:
                expected = expected * qparams.scale.to(x).view(along)
            found = product_input(x, qparams, channel_dim)
            assert found.dtype == dtype
            assert torch.equal(found, expected)


@pytest.mark.parametrize(('scales', 'zero_points'), [(3, 1), (1, 3)])
@pytest.mark.parametrize('least', [0, 1e18], ids=['compiled', 'plain'])
@pytest.mark.parametrize(('shape', 'channel_dim'), [((2, 3, 4, 5), 1), ((3, 7), 0), ((7, 3), -1)])
def test_one_scale_with_zero_points_a_channel_and_the_reverse(
        shape, channel_dim, least, scales, zero_points, monkeypatch):
    monkeypatch.setattr(round_trip, 'LEAST_ELEMENTS', least)
    qparams = QParams(make_qparams('signed', 4, scales).scale,
                      make_qparams('asymmetric', 4, zero_points).zero_point, 0, 15, unit=False)
    x = random_input(*shape)
    assert torch.equal(product_input(x, qparams, channel_dim),
                       fake_quantize(x, qparams, channel_dim))


@pytest.mark.parametrize('unit', [True, False])
@pytest.mark.parametrize('channels', [1, 5])
def test_channels_last_stays_channels_last(channels, unit):
    """A convolution takes its layout from its input."""
    x = random_input(2, 5, 40, 50)
    last = x.contiguous(memory_format=torch.channels_last)
    qparams = make_qparams('asymmetric', 8, channels, unit)
    found = product_input(last, qparams)
    assert found.stride() == last.stride()
    assert torch.equal(found, product_input(x, qparams))


@pytest.mark.parametrize('least', [0, 1e18], ids=['compiled', 'plain'])
def test_nan_reaches_the_product(least, monkeypatch):
    monkeypatch.setattr(round_trip, 'LEAST_ELEMENTS', least)
    x = random_input(2, 3, 4)
    x[1, 2, 3] = float('nan')
    found = product_input(x, make_qparams('asymmetric', 4, channels=3, unit=True))
    assert torch.isnan(found).nonzero().tolist() == [[1, 2, 3]]
