"""Planes are ternary, carry the sign of their code, and stitch back to it."""

import pytest
import torch

from mmbitsplit.functional import code_range, split_bit_planes, stitch_bit_planes


def all_codes(bits, dtype):
    low, high = code_range(bits, signed=True, narrow_range=True)
    return torch.arange(low, high + 1).to(dtype)


@pytest.mark.parametrize('dtype', [torch.int8, torch.float64])
@pytest.mark.parametrize('bits', range(2, 9))
def test_every_code_survives_split_and_stitch(bits, dtype):
    codes = all_codes(bits, dtype)
    planes = split_bit_planes(codes, bits)
    assert planes.shape == (bits - 1, *codes.shape)
    assert planes.dtype == dtype
    assert torch.equal(stitch_bit_planes(planes).to(dtype), codes)


@pytest.mark.parametrize('bits', range(2, 9))
def test_planes_are_ternary_and_have_the_sign_of_their_code(bits):
    codes = all_codes(bits, torch.int8)
    planes = split_bit_planes(codes, bits)
    assert set(planes.unique().tolist()) == {-1, 0, 1}
    assert ((planes == 0) | (planes == codes.sign())).all()


def test_planes_are_the_binary_digits_of_the_magnitude():
    for code in range(-127, 128):
        digits = split_bit_planes(torch.tensor([code]), 8)[:, 0].abs().tolist()
        assert digits == [int(digit) for digit in reversed(f'{abs(code):07b}')]


def test_stitch_takes_planes_of_any_sign_and_shape():
    planes = torch.tensor([[[1.0, -1.0]], [[1.0, 1.0]], [[-1.0, 0.0]]])  # (3, 1, 2)
    assert stitch_bit_planes(planes).tolist() == [[1 + 2 - 4, -1 + 2]]


def test_split_leaves_its_input_alone():
    codes = all_codes(4, torch.float64)
    before = codes.clone()
    split_bit_planes(codes, 4)
    assert torch.equal(codes, before)
