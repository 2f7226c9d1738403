"""Numbers come back from few bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmbitsplit.functional.rice_codes import pack_rice, unpack_rice


@given(st.lists(st.integers(-2000, 2000), max_size=40), st.sampled_from([1, 4]),
       st.binary(max_size=5))
def test_numbers_come_back_whatever_follows(values, factor, after):
    wanted = torch.tensor(values, dtype=torch.int64) * factor
    packed = pack_rice(wanted)
    more = torch.tensor([*packed.tolist(), *after], dtype=torch.uint8)
    found, size = unpack_rice(more, len(values))
    assert torch.equal(found, wanted) and size == packed.numel()


def test_bytes_are_those_of_the_format():
    # The median is 5; distances -1, 0, 0, 1, 2 are numbers 1, 0, 0, 2, 4, without low bits.
    assert pack_rice(torch.tensor([4, 5, 5, 6, 7])).tolist() == [5, 0, 0, *_unary([1, 0, 0, 2, 4])]
    # Distances -1, 0, 0, 4 in steps of 2^3 are 1, 0, 0, 8, each with one low bit.
    assert pack_rice(torch.tensor([0, 8, 8, 40])).tolist() == [
        8, 0, 1 + 16 * 3, *_unary([0, 0, 0, 4]), 0b0001]
    assert pack_rice(torch.tensor([-2, -2])).tolist() == [0xFE, 0xFF, 255]


def _unary(counts):
    """Bytes of so many zeros and a one each, lowest bit first."""
    bits = [bit for count in counts for bit in (*[0] * count, 1)]
    return [sum(bit << place for place, bit in enumerate(bits[begin:begin + 8]))
            for begin in range(0, len(bits), 8)]


def test_near_numbers_take_few_bits_and_one_far_away_little_more():
    values = (3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))).round()
    size = pack_rice(values).numel()
    assert size < 1000 * 4 / 8  # their entropy is 3.6 bits
    values[7] = 1000
    assert pack_rice(values).numel() < size + 80


@pytest.mark.parametrize('values', [[1, 5, -9, 3], list(range(100)), [0] * 20 + [1999]])
def test_missing_bytes_are_told(values):
    packed = pack_rice(torch.tensor(values))
    for size in range(packed.numel()):
        with pytest.raises(ValueError, match='missing'):
            unpack_rice(packed[:size], len(values))
    with pytest.raises(ValueError, match='not known'):
        unpack_rice(torch.tensor([0, 0, 15, 1], dtype=torch.uint8), 1)
