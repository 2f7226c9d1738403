"""Sums on a grid are exact, in any order, and the grid is finer than it matters."""

import pytest
import torch

from mmbitsplit.functional import layer_statistics
from mmbitsplit.functional.exact_sums import (
    INPUT_BITS,
    OUTPUT_BITS,
    Bytes,
    SumGrid,
    integer_cross,
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
