"""What a file holds of several widths: prefixes are narrower codes, stored values come back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbitsplit.functional.stored_widths import (
    NO_STEP,
    bias_as_stored,
    bias_codes,
    pack_bits,
    pack_nested,
    scale_as_stored,
    scale_codes,
    scale_error,
    unpack_bits,
    unpack_nested,
)

WIDTHS = st.sets(st.integers(2, 8), min_size=1).map(sorted)


def narrow(codes, steps, nesting):
    """The definition, a line each."""
    codes = codes.int()
    return codes >> steps if nesting == 'floor' else codes.sign() * (codes.abs() >> steps)


@settings(max_examples=40, deadline=None)
@given(WIDTHS, st.sampled_from(['floor', 'planes']), st.integers(0, 50), st.integers(0, 10 ** 6))
def test_each_prefix_of_parts_is_the_codes_of_its_width(widths, nesting, count, seed):
    half = 2 ** (widths[-1] - 1)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-half + (nesting == 'planes'), half, (count,), generator=generator)
    parts = pack_nested(codes.to(torch.int8), widths, nesting)
    before = 0
    for place, width in enumerate(widths):
        found = unpack_nested(parts[:place + 1], widths, nesting, count)
        assert torch.equal(found.int(), narrow(codes, widths[-1] - width, nesting))
        assert parts[place].numel() == -(-count * (width - before) // 8)
        before = width


@given(st.integers(1, 8), st.data())
def test_numbers_of_any_bits_come_back(num_bits, data):
    values = torch.tensor(data.draw(st.lists(st.integers(0, 2 ** num_bits - 1), max_size=20)),
                          dtype=torch.int16)
    packed = pack_bits(values, num_bits)
    assert torch.equal(unpack_bits(packed, num_bits, len(values)), values)
    with pytest.raises(ValueError, match=f'take {packed.numel()} bytes, got'):
        unpack_bits(torch.cat([packed, packed[:1], torch.zeros(1, dtype=torch.uint8)]), num_bits,
                    len(values))


@pytest.mark.parametrize('widths', [[], [4, 3], [3, 3], [1, 4], [4, 9]])
def test_widths_that_do_not_rise_from_2_to_8_are_refused(widths):
    with pytest.raises(ValueError, match='widths='):
        pack_nested(torch.zeros(2, dtype=torch.int8), widths, 'floor')


@pytest.mark.parametrize(('nesting', 'code'), [('floor', 8), ('floor', -9), ('planes', -8)])
def test_codes_that_are_too_wide_are_refused(nesting, code):
    with pytest.raises(ValueError, match='codes from'):
        pack_nested(torch.tensor([0, code], dtype=torch.int8), [3, 4], nesting)


@given(st.lists(st.tuples(st.floats(1e-30, 1e20), st.floats(0.41, 2.45)), min_size=1, max_size=9),
       st.integers(0, 6), st.integers(2, 8))
def test_scales_are_near_and_come_back_exactly(pairs, steps, num_bits):
    widest = torch.tensor([pair[0] for pair in pairs])
    wanted = widest * torch.tensor([pair[1] for pair in pairs]) * 2.0 ** steps
    stored = scale_as_stored(wanted, widest, steps, num_bits)
    assert ((stored / wanted - 1).abs() < scale_error(num_bits)).all()
    assert torch.equal(scale_as_stored(stored, widest, steps, num_bits), stored)


@pytest.mark.parametrize('num_bits', [2, 3, 4, 5])
def test_rounding_scales_adds_little_to_rounding_codes(num_bits):
    codes = torch.arange(2 ** num_bits).double() - (2 ** num_bits - 1) / 2
    wanted = torch.linspace(0.5, 2, 1000)
    away = scale_as_stored(wanted, torch.ones(1000), 0, num_bits) / wanted - 1
    added = codes.square().mean() * away.double().square().mean()
    assert added < 0.005 / 12  # that of rounding codes


def test_scales_that_nest_are_kept_as_they_are():
    widest = torch.rand(20) + 0.1
    assert torch.equal(scale_as_stored(widest * 16, widest, 4, 3), widest * 16)
    assert not scale_codes(widest * 16, widest, 4).any()


def test_channels_that_a_width_does_without_have_a_scale_of_zero():
    widest = torch.tensor([1.0, 1.0, 0.0, 0.0])
    stored = scale_as_stored(torch.tensor([0.0, -1.0, 0.0, 3.0]), widest, 2, 2)
    assert torch.equal(stored, torch.zeros(4))


def test_scales_far_away_become_the_nearest_that_there_is():
    for num_bits, most in ((8, 127), (4, 126), (2, 124)):
        stored = scale_as_stored(torch.tensor([100.0, 1e-3]), torch.ones(2), 0, num_bits)
        assert stored.tolist() == pytest.approx([2 ** (most / 96), 2 ** (-most / 96)])


@given(st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-1e3, 1e3, width=32)),
                min_size=1, max_size=9), st.sampled_from([1.0, 1e-3, 1e-7]))
def test_biases_are_near_and_come_back_exactly(pairs, size):
    widest = torch.tensor([pair[0] for pair in pairs])
    wanted = widest + torch.tensor([pair[1] for pair in pairs]) * size
    stored = bias_as_stored(wanted, widest)
    away, size = (stored.double() - wanted.double()).abs(), (wanted - widest).double()
    most = max(size.square().mean().sqrt() / 8, size.abs().max() / 1023)
    assert away.max() <= max(most, widest.abs().max() * 2.0 ** -19, 1e-35)
    assert torch.equal(bias_as_stored(stored, widest), stored)
    assert bias_codes(stored, widest)[0].abs().max() <= 1023


def test_biases_of_older_files_come_back_exactly():
    steps = torch.randint(-31, 32, (40,), generator=torch.Generator().manual_seed(0))
    widest = torch.rand(40, generator=torch.Generator().manual_seed(1))
    bias = widest + (steps | 1).float() * 2.0 ** -9  # finer than steps are chosen now
    codes, exponent = bias_codes(bias, widest)
    assert exponent == -9 and torch.equal(codes.long(), steps | 1)
    assert torch.equal(bias_as_stored(bias, widest), bias)


def test_equal_biases_have_no_step():
    bias = torch.randn(5)
    assert bias_codes(bias, bias)[1] == NO_STEP
    assert torch.equal(bias_as_stored(bias, bias), bias)
