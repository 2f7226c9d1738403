"""Narrower codes, offsets and input scales, made of the widest's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbitsplit.functional import (
    code_range,
    input_factor,
    midrise_codes,
    midrise_offset,
    narrower_codes,
    narrower_qparams,
    odd_codes,
    split_bit_planes,
    stitch_bit_planes,
)
from mmbitsplit.structures import QParams

WIDTHS = st.integers(2, 8)


def all_codes(num_bits, narrow):
    low, high = code_range(num_bits, signed=True, narrow_range=narrow)
    return torch.arange(low, high + 1).to(torch.int8)


@settings(deadline=None)
@given(WIDTHS, WIDTHS)
def test_narrower_codes_are_a_prefix_of_the_planes(one, other):
    wide, narrow = max(one, other), min(one, other)
    codes = all_codes(wide, narrow=True)
    planes = split_bit_planes(codes, wide)
    assert torch.equal(narrower_codes(codes, wide, narrow, 'planes'),
                       stitch_bit_planes(planes[wide - narrow:]))
    # In two's complement a prefix of bits: the low ones make no difference.
    codes = all_codes(wide, narrow=False)
    found = narrower_codes(codes, wide, narrow, 'floor')
    assert found.dtype == torch.int8
    assert found.tolist() == [code // 2 ** (wide - narrow) for code in codes.tolist()]
    assert torch.equal(found.unique(), all_codes(narrow, narrow=False))


@settings(deadline=None)
@given(WIDTHS, WIDTHS, st.floats(0.01, 10), st.integers(0, 1000))
def test_floor_codes_of_every_width_are_the_nearest(one, other, scale, seed):
    """Cells are halves of those of the next narrower width: one code is right for both."""
    wide, narrow = max(one, other), min(one, other)
    weight = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    wide_scale = torch.tensor([scale]) / 2 ** (wide - narrow)
    codes = narrower_codes(midrise_codes(weight, wide_scale, wide), wide, narrow, 'floor')
    narrow_scale = wide_scale * 2 ** (wide - narrow)
    assert torch.equal(codes, midrise_codes(weight, narrow_scale, narrow))
    grid = all_codes(narrow, narrow=False) * narrow_scale + midrise_offset(narrow_scale)
    error = (codes * narrow_scale + midrise_offset(narrow_scale) - weight).abs()
    least = (weight.unsqueeze(1) - grid).abs().min(1).values
    torch.testing.assert_close(error, least, rtol=1e-4, atol=1e-6)


@settings(deadline=None)
@given(st.integers(2, 7), st.floats(0.01, 10))
def test_odd_codes_are_the_same_weights_without_an_offset(num_bits, scale):
    scale, codes = torch.tensor([scale]), all_codes(num_bits, narrow=False)
    odd = odd_codes(codes)
    assert odd.dtype == torch.int8
    torch.testing.assert_close(odd * (scale / 2), codes * scale + midrise_offset(scale))


def widest(scales, low=0, high=255, zero=0):
    return QParams(torch.tensor(scales), torch.full((len(scales),), zero), low, high)


@settings(deadline=None)
@given(st.lists(st.floats(2 ** -10, 10, width=32), min_size=1, max_size=4),
       st.floats(0.5, 80), WIDTHS)
def test_an_input_of_fewer_bits_is_a_multiple_that_can_be_stored(scales, factor, num_bits):
    base = widest(scales, zero=77)
    found = narrower_qparams(base, factor, num_bits)
    assert (found.quant_min, found.quant_max, found.num_bits) == (0, 2 ** num_bits - 1, num_bits)
    exact = input_factor(found, base)
    assert exact == pytest.approx(factor, rel=1e-6)
    again = narrower_qparams(base, exact, num_bits)
    assert torch.equal(again.scale, found.scale)
    assert torch.equal(again.zero_point, found.zero_point)
    assert 0 <= int(found.zero_point.min()) and int(found.zero_point.max()) < 2 ** num_bits
    # The first scale is a float32 that says the factor to the last bit.
    stored = found.scale[:1].clone()
    assert float(stored.double() / base.scale[:1].double()) == exact


@pytest.mark.parametrize(('low', 'high', 'expected'), [
    (-128, 127, (-8, 7)), (-127, 127, (-7, 7)), (0, 255, (0, 15))])
def test_ranges_of_fewer_bits_are_of_the_same_kind(low, high, expected):
    found = narrower_qparams(widest([0.5], low, high), 16, 4)
    assert (found.quant_min, found.quant_max) == expected


def test_scales_that_are_no_multiple_are_refused():
    with pytest.raises(ValueError, match='scales of 4 bits are no multiple .* 8 bits'):
        input_factor(widest([1.0, 2.0], high=15), widest([1.0, 1.0]))
