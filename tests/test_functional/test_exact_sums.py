"""Sums on a grid are exact, in any order, and the grid is finer than it matters."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmbitsplit.functional import layer_statistics
from mmbitsplit.functional.kernels import exact_sums
from mmbitsplit.functional.kernels.exact_sums import (
    FLOAT_POSITIONS,
    INPUT_BITS,
    MOST_POSITIONS,
    OUTPUT_BITS,
    STRIP,
    Bytes,
    SumGrid,
    byte_products,
    integer_cross,
    multiplies_bytes,
    on_grid,
)

SUMS = ('gram', 'cross', 'y_sq', 'x_sum', 'y_sum')


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape, lowest=0):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(lowest, lowest + 256, shape, generator=generator).float()


def grid_of(x, y):
    return SumGrid.of(y.abs().amax(-1, keepdim=True), x.abs().amax().view(1))


@pytest.mark.parametrize('largest', [1e-30, 0.3, 0.5, 1.0, 1.1, 12345.0])
def test_steps_are_powers_of_two_that_cover_the_largest(largest):
    grid = SumGrid.of(torch.tensor([[[largest]]]), torch.tensor([largest]))
    for step, bits in ((grid.y, OUTPUT_BITS), (grid.x, INPUT_BITS)):
        assert torch.frexp(step).mantissa.eq(0.5).all()
        assert 2 ** (bits - 1) <= largest / float(step) <= 2 ** bits


def test_a_channel_of_zeros_has_a_step():
    grid = SumGrid.of(torch.zeros(1, 2, 1), torch.zeros(1))
    assert (grid.y == 1).all() and (grid.x == 1).all()


@pytest.mark.parametrize('lowest', [0, -3, -128, -255])
def test_products_of_bytes_are_exact(lowest):
    x, y = integers(1, 70, 4000, lowest=lowest), normal(1, 5, 4000) * 3
    y[0, 0, 0], y[0, 1] = -80.0, 0.0
    step = grid_of(x, y).y
    rounded = on_grid(y, step)
    small = Bytes.of(x, lowest)
    assert torch.equal(small.value_sums, x.double().sum(-1))
    cross, y_sum, y_sq = integer_cross(small, y, step)
    assert torch.equal(cross, rounded @ x.double().mT)
    assert torch.equal(y_sum, rounded.sum(-1)) and torch.equal(y_sq, rounded.square().sum(-1))


def test_largest_magnitudes_keep_their_bytes():
    """Multiples of the step from the smallest to the largest, signs included."""
    steps = torch.arange(-2 ** OUTPUT_BITS, 2 ** OUTPUT_BITS + 1).float()
    y = (steps * 0.25).view(1, 1, -1)
    cross, y_sum, _ = integer_cross(Bytes.of(torch.ones(1, 1, y.shape[-1]), 0), y,
                                    torch.full((1, 1, 1), 0.25, dtype=torch.float64))
    assert cross.item() == y_sum.item() == 0
    picked = torch.zeros(1, y.shape[-1], 1)
    for index in (0, 1, 127, 128, 2 ** OUTPUT_BITS, y.shape[-1] - 1):
        picked.zero_()
        picked[0, index] = 1.0
        cross, _, _ = integer_cross(Bytes.of(picked.mT.contiguous(), 0), y, torch.full(
            (1, 1, 1), 0.25, dtype=torch.float64))
        assert cross.item() == y[0, 0, index]


@pytest.mark.parametrize('inputs', [9, 70])
@pytest.mark.parametrize('lowest', [0, None])
def test_sums_are_the_same_in_any_order(inputs, lowest):
    x = integers(1, inputs, 3000) / (1 if lowest == 0 else 7)
    y = normal(1, 5, 3000)
    grid = grid_of(x, y)
    grid = grid if lowest is None else SumGrid(grid.y)

    def sums(chosen):
        return layer_statistics(x[..., chosen].contiguous(), y[..., chosen].contiguous(),
                                lowest=lowest, grid=grid)

    whole = sums(slice(None))
    shuffled = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    for other in (sums(shuffled), sums(slice(0, 11)) + sums(slice(11, None))):
        for name in SUMS:
            assert torch.equal(getattr(other, name), getattr(whole, name))
    plain = layer_statistics(x.double(), y.double())
    for name in SUMS:
        size = getattr(plain, name).abs().max()
        torch.testing.assert_close(getattr(whole, name), getattr(plain, name), rtol=0,
                                   atol=2e-4 * float(size))


def test_a_position_without_end_is_not_hidden():
    """Layers refuse what is not finite before; here it must at least not look like a number."""
    grid = SumGrid.of(torch.full((1, 1, 1), float('nan')), None)
    assert not layer_statistics(torch.ones(1, 2, 3), torch.full((1, 1, 3), float('nan')),
                                grid=SumGrid(grid.y, torch.ones(1))).cross.isfinite().any()


@pytest.fixture(params=['vnni', 'float32'])
def way(request, monkeypatch):
    """Products of bytes by the processor's instructions for them, or in float32."""
    if request.param == 'vnni' and not multiplies_bytes():
        pytest.skip('no VNNI here, or it is hidden')
    monkeypatch.setattr(exact_sums, 'multiplies_bytes', lambda: request.param == 'vnni')


BOTH_WAYS = settings(max_examples=25, deadline=None,
                     suppress_health_check=[HealthCheck.function_scoped_fixture])


def oracle(a, b):
    """In whole numbers of 64 bits."""
    return a.long() @ b.long().mT


def steps(low, high, *shape, seed):
    """Whole numbers from one to the other, both ends in nearly every row."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(low, high + 1, shape, generator=generator)
    ends = torch.rand(shape, generator=generator)
    return torch.where(ends < 0.3, low, torch.where(ends > 0.7, high, values))


@BOTH_WAYS
@given(rows=st.integers(1, 9), others=st.integers(1, 70), positions=st.integers(0, 2100),
       seed=st.integers(0, 99))
def test_products_of_bytes_are_those_of_whole_numbers(way, rows, others, positions, seed):
    a, b = (steps(-128, 127, count, positions, seed=seed).to(torch.int8)
            for count in (rows, others))
    assert torch.equal(byte_products(a, b).long(), oracle(a, b))


@pytest.mark.parametrize('value', [-128, 127])
@pytest.mark.parametrize('positions', [1, FLOAT_POSITIONS, FLOAT_POSITIONS + 1,
                                       MOST_POSITIONS - 1])
def test_the_largest_products_of_bytes(way, positions, value):
    """2^10 times 2^14 is the last whole number up to which float32 holds all."""
    a = torch.full((70, positions), value, dtype=torch.int8)
    assert byte_products(a, a).eq(value ** 2 * positions).all()


@BOTH_WAYS
@given(groups=st.integers(1, 2), inputs=st.sampled_from([5, 64, STRIP + 1, 1030]),
       positions=st.integers(1, 90), lowest=st.sampled_from([None, 0, -3, -128, -255]),
       seed=st.integers(0, 99))
def test_sums_on_a_grid_are_those_of_whole_numbers(way, groups, inputs, positions, lowest, seed):
    """Inputs that are codes (``lowest``) or float, on both sides of every threshold of size."""
    bits = INPUT_BITS if lowest is None else 0
    low, high = (-2 ** bits, 2 ** bits) if lowest is None else (lowest, lowest + 255)
    x = steps(low, high, groups, inputs, positions, seed=seed)
    y = steps(-2 ** OUTPUT_BITS, 2 ** OUTPUT_BITS, groups, 3, positions, seed=seed + 1)
    grid = SumGrid(torch.full((groups, 3, 1), 0.25).double(),
                   torch.full((1,), 2.0 ** -9).double() if lowest is None else None)
    x_step = 1.0 if lowest is not None else 2.0 ** -9
    sums = layer_statistics((x.double() * x_step).float(), y.float() * 0.25, lowest=lowest,
                            grid=grid, dtype=torch.float64)
    expected = dict(gram=oracle(x, x).double() * x_step ** 2,
                    cross=oracle(y, x).double() * x_step * 0.25,
                    y_sq=y.square().sum(-1).double() / 16, x_sum=x.sum(-1).double() * x_step,
                    y_sum=y.sum(-1).double() * 0.25)
    for name, value in expected.items():
        assert torch.equal(getattr(sums, name), value), name
    rounded = layer_statistics((x.double() * x_step).float(), y.float() * 0.25, lowest=lowest,
                               grid=grid)
    for name, value in expected.items():  # once, at the end
        assert torch.equal(getattr(rounded, name), value.to(getattr(rounded, name).dtype)), name


@pytest.mark.parametrize('lowest', [0, None])
def test_more_positions_than_one_sum_holds(way, lowest):
    x = torch.full((1, 64, MOST_POSITIONS + 5), 255.0)
    y = torch.ones(1, 1, MOST_POSITIONS + 5)
    grid = grid_of(x, y)
    grid = grid if lowest is None else SumGrid(grid.y)
    sums = layer_statistics(x, y, lowest=lowest, grid=grid)
    assert sums.count == MOST_POSITIONS + 5
    assert sums.gram.eq(255 ** 2 * sums.count).all() and sums.cross.eq(255 * sums.count).all()


@pytest.mark.parametrize('switch', ['AVX2', 'DEFAULT'])
def test_instructions_that_are_hidden_are_not_relied_on(switch):
    """torch says VNNI whatever oneDNN may use; without it oneDNN's products saturate."""
    code = ('import torch; from mmbitsplit.functional.kernels.exact_sums import byte_products\n'
            'a = torch.full((70, 3000), 127, dtype=torch.int8)\n'
            'assert byte_products(a, a).eq(127 ** 2 * 3000).all()')
    done = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True,
                          env={**os.environ, 'ONEDNN_MAX_CPU_ISA': switch})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('support', ['no', 'unknown'])
def test_a_torch_that_knows_no_vnni(support, monkeypatch):
    if support == 'no':
        monkeypatch.setattr(torch.cpu, '_is_vnni_supported', lambda: False, raising=False)
    else:
        monkeypatch.delattr(torch.cpu, '_is_vnni_supported', raising=False)
    assert not multiplies_bytes.__wrapped__()
