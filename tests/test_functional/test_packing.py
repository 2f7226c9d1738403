"""Packing: exact for every width and length, as small as it can be, equal to plain integers."""

import math

import pytest
import torch

from mmbitsplit.functional import pack_codes, unpack_codes

LENGTHS = [1, 2, 3, 5, 7, 8, 9, 16, 31, 64, 65]


def random_codes(rows, length, bits):
    generator = torch.Generator().manual_seed(100 * length + bits)
    half = 2 ** (bits - 1)
    return torch.randint(-half, half, (rows, length), generator=generator).to(torch.int8)


def pack_row_slowly(row, bits):
    """One bit after another in a plain Python integer, the first code in the lowest bits."""
    packed = 0
    for position, code in enumerate(row):
        for bit in range(bits):
            packed |= (code >> bit & 1) << (position * bits + bit)
    return list(packed.to_bytes(math.ceil(len(row) * bits / 8), 'little'))


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('length', LENGTHS)
def test_round_trip_size_and_oracle(length, bits):
    codes = random_codes(3, length, bits)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, math.ceil(length * bits / 8))
    assert packed.tolist() == [pack_row_slowly(row, bits) for row in codes.tolist()]
    unpacked = unpack_codes(packed, bits, length)
    assert unpacked.dtype == torch.int8
    assert torch.equal(unpacked, codes)


@pytest.mark.parametrize('bits', range(2, 9))
def test_every_code_of_a_width_survives(bits):
    half = 2 ** (bits - 1)
    codes = torch.arange(-half, half).to(torch.int8).unsqueeze(0)
    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, codes.shape[1]), codes)


@pytest.mark.parametrize('bits', range(2, 8))
@pytest.mark.parametrize('past_the_end', [0, 1])
def test_codes_that_do_not_fit_are_refused(bits, past_the_end):
    half = 2 ** (bits - 1)
    code = half if past_the_end else -half - 1
    with pytest.raises(ValueError, match=f'num_bits={bits}.*{-half} to {half - 1}'):
        pack_codes(torch.tensor([[0, code]], dtype=torch.int8), bits)


@pytest.mark.parametrize('bits', [1, 9, 4.0, True])
def test_widths_that_are_not_known_are_refused(bits):
    with pytest.raises(ValueError, match='num_bits'):
        pack_codes(torch.zeros(1, 1, dtype=torch.int8), bits)
    with pytest.raises(ValueError, match='num_bits'):
        unpack_codes(torch.zeros(1, 1, dtype=torch.uint8), bits, 1)


@pytest.mark.parametrize('num_bytes', [1, 3])
def test_a_wrong_number_of_bytes_is_refused(num_bytes):
    with pytest.raises(ValueError, match='5 codes of 3 bits take 2 bytes'):
        unpack_codes(torch.zeros(1, num_bytes, dtype=torch.uint8), 3, 5)


def test_no_rows_pack_to_no_rows():
    packed = pack_codes(torch.zeros(0, 5, dtype=torch.int8), 3)
    assert packed.shape == (0, 2)
    assert unpack_codes(packed, 3, 5).shape == (0, 5)
