"""Divide, round, clamp: the compiled loop, plain torch and the definition agree."""

import pytest
import torch

from mmbitsplit.functional.kernels import numba_loops, round_trip
from mmbitsplit.functional.kernels.round_trip import (
    LEAST_ELEMENTS,
    round_rows,
    round_trip_errors,
)

DTYPES = [torch.float32, torch.float64]
# (rows, columns, channels): one of each, repeated channels, one channel for all rows, more than
# the loops take at a time, sizes on both sides of LEAST_ELEMENTS.
SIZES = [(1, 1, 1), (6, 7, 3), (8, 33, 1), (5, 1500, 5), (12, 1024, 2), (8, 2047, 4),
         (8, 2048, 4), (40, 2500, 8)]


def make_rows(rows, columns, channels, dtype, candidates=(), seed=0):
    """x (R, L) with values on the grid, between and beyond; scale, low, high (..., C)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*candidates, channels)
    scale = (torch.rand(shape, generator=generator) + 0.1).to(dtype)
    low = torch.randint(-9, 1, shape, generator=generator).to(dtype)
    high = low + torch.randint(1, 16, shape, generator=generator)
    x = 4 * torch.randn(rows, columns, generator=generator).to(dtype)
    return x, scale, low, high


def definition(x, scale, low, high):
    """One row after another."""
    channels = scale.numel()
    return torch.stack([(row / scale[r % channels]).round().clamp(low[r % channels],
                                                                  high[r % channels])
                        for r, row in enumerate(x)])


@pytest.fixture(params=['compiled', 'plain'])
def way(request, monkeypatch):
    """Sends all sizes one way."""
    monkeypatch.setattr(round_trip, 'LEAST_ELEMENTS', 0 if request.param == 'compiled' else 1e18)
    return request.param


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_rows_are_rounded_as_defined(size, dtype, way):
    x, scale, low, high = make_rows(*size, dtype)
    before = x.clone()
    codes = round_rows(x, scale, low, high)
    assert codes.dtype == dtype
    assert torch.equal(codes, definition(x, scale, low, high))
    assert torch.equal(x, before)
    if x.numel() > 100:
        assert (codes == low.repeat(size[0] // size[2]).unsqueeze(1)).any()  # some were clamped


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('candidates', [1, 5])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_errors_are_those_of_the_rounded_rows(size, candidates, dtype, way):
    x, scale, low, high = make_rows(*size, dtype, (candidates,))
    errors = round_trip_errors(x, scale, low, high)
    assert errors.dtype == torch.float64
    assert errors.shape == (candidates, size[0])
    for f in range(candidates):
        codes = definition(*(part.double() for part in (x, scale[f], low[f], high[f])))
        steps = scale[f].double().repeat(size[0] // size[2]).unsqueeze(1)
        expected = (x.double() - steps * codes).square().sum(1)
        torch.testing.assert_close(errors[f], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('dtype', DTYPES)
def test_both_ways_agree_on_errors(dtype, bits, monkeypatch):
    """The loop multiplies by the inverse of the scale: a tie may fall the other way, not cost."""
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(8, 3000, generator=generator).to(dtype)
    top = x.abs().amax(1) / 2 ** (bits - 1)
    scale = torch.linspace(0.2, 1.0, 9).to(dtype).unsqueeze(1) * top  # (F, R)
    bound = torch.full_like(scale, 2 ** (bits - 1))
    found = []
    for least in (0, 1e18):
        monkeypatch.setattr(round_trip, 'LEAST_ELEMENTS', least)
        found.append(round_trip_errors(x, scale, -bound, bound - 1))
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


@pytest.mark.parametrize('dtype', DTYPES)
def test_ties_go_to_the_even_code(dtype, way):
    scale = torch.tensor([0.25, 0.5], dtype=dtype)
    steps = torch.arange(-9, 10, dtype=dtype) + 0.5
    far = torch.full_like(scale, 100)
    codes = round_rows(torch.stack([steps * 0.25, steps * 0.5]), scale, -far, far)
    expected = [round(step) for step in steps.tolist()]  # Python's ties go to the even too
    assert codes.tolist() == [expected, expected]
    assert (codes % 2 == 0).all()


@pytest.mark.parametrize('dtype', DTYPES)
def test_nan_stays_nan_and_infinity_is_clamped(dtype, way):
    x = torch.ones(2, 300, dtype=dtype)
    x[0, 7], x[1, 250], x[1, 3] = float('nan'), float('inf'), -float('inf')
    one = torch.ones(2, dtype=dtype)
    codes = round_rows(x, one, -2 * one, 5 * one)
    assert torch.isnan(codes).nonzero().tolist() == [[0, 7]]
    assert (codes[1, 250], codes[1, 3]) == (5, -2)
    errors = round_trip_errors(x, one.unsqueeze(0), -2 * one.unsqueeze(0), 5 * one.unsqueeze(0))
    assert torch.isnan(errors[0, 0])
    assert torch.isinf(errors[0, 1])


@pytest.mark.parametrize('arrange', [
    lambda x: x.t().contiguous().t(), lambda x: torch.stack([x, x], 2)[..., 0],
    lambda x: torch.cat([x, x], 1)[:, :x.shape[1]]], ids=['transposed', 'strided', 'slice'])
def test_rows_that_are_not_contiguous(arrange):
    x, scale, low, high = make_rows(40, 2500, 8, torch.float32)
    strided = arrange(x)
    assert not strided.is_contiguous()
    assert torch.equal(round_rows(strided, scale, low, high), round_rows(x, scale, low, high))
    parts = [part.unsqueeze(0) for part in (scale, low, high)]
    torch.testing.assert_close(round_trip_errors(strided, *parts), round_trip_errors(x, *parts),
                               rtol=1e-6, atol=0)


def test_parameters_that_are_not_contiguous(way):
    """Every second element of a longer tensor, and one value for all channels."""
    x, scale, low, high = make_rows(8, 50, 4, torch.float32)
    spread = [torch.stack([part, part + 1], 1)[:, 0] for part in (scale, low, high)]
    assert torch.equal(round_rows(x, *spread), definition(x, scale, low, high))
    same = [part[:1] for part in (scale, low, high)]
    assert torch.equal(round_rows(x, *(part.expand(4) for part in same)), definition(x, *same))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('lowest', [0, -3, -128, -255])
def test_integers_become_bytes(lowest, dtype, way):
    """All 256 of them, in rows that are contiguous and in others."""
    x = (torch.arange(512) % 256 + lowest).view(4, 128).to(dtype)
    for rows in (x, x[:, ::3], x.t()):
        small, sums = round_trip.small_integers(rows, torch.full((len(rows),), lowest + 128))
        assert torch.equal(sums, small.long().sum(1))
        assert small.dtype == torch.int8
        assert torch.equal(small.to(dtype) + (lowest + 128), rows)
        middle = torch.arange(len(rows)) + lowest + 128
        shifted = rows + torch.arange(len(rows)).to(dtype).unsqueeze(1)
        other, other_sums = round_trip.small_integers(shifted, middle)
        assert torch.equal(other, small) and torch.equal(other_sums, sums)


@pytest.mark.parametrize(('size', 'dtype', 'loops'), [
    ((8, LEAST_ELEMENTS // 8, 1), torch.float32, True),
    ((8, LEAST_ELEMENTS // 8 - 1, 1), torch.float32, False),
    ((8, LEAST_ELEMENTS // 8, 1), torch.float64, True),
    ((8, LEAST_ELEMENTS // 8, 1), torch.float16, False),
    ((8, LEAST_ELEMENTS // 8, 1), torch.bfloat16, False)], ids=str)
def test_the_compiled_loop_is_called_where_it_pays(size, dtype, loops, monkeypatch):
    called = []
    quantize_rows = numba_loops.quantize_rows
    monkeypatch.setattr(numba_loops, 'quantize_rows',
                        lambda *args: called.append(args) or quantize_rows(*args))
    x, scale, low, high = make_rows(*size, dtype)
    assert torch.equal(round_rows(x, scale, low, high), definition(x, scale, low, high))
    assert bool(called) == loops
