"""Regulariser, schedule and error of learned rounding, at points computed by hand."""

import pytest
import torch

from mmbitsplit.functional.quantizers.soft_rounding import rectified_sigmoid
from mmbitsplit.functional.solvers.learned_rounding import (
    beta_at,
    decided_share,
    most_decided,
    rate_factor,
    reconstruction_loss,
    rounding_regulariser,
)


@pytest.mark.parametrize(('h', 'beta', 'wanted'), [
    ([0.0, 1.0, 0.5], 20.0, 1.0), ([0.25], 2.0, 0.75), ([0.25, 0.75], 3.0, 1.75),
    ([0.9], 2.0, 0.36), ([0.5] * 4, 2.0, 4.0)])
def test_the_regulariser_counts_what_is_undecided(h, beta, wanted):
    h = torch.tensor(h, dtype=torch.float64)
    assert float(rounding_regulariser(h, beta)) == pytest.approx(wanted)


def test_beta_falls_along_a_line_after_the_warm_start():
    found = [beta_at(step, 10) for step in range(10)]
    assert found[:2] == [None, None]
    assert found[2:] == pytest.approx([20 - 2.25 * step for step in range(8)])
    assert beta_at(0, 4, warm_start=0.0) == 20
    assert {beta_at(step, 4, warm_start=1.0) for step in range(4)} == {None}
    assert {beta_at(step, 4, warm_start=1.0) for step in (4, 9)} == {2}  # steps beyond the last


@pytest.mark.parametrize(('schedule', 'wanted'), [
    ('constant', [1, 1, 1, 1, 1, 1]), ('linear', [1, 0.75, 0.5, 0.25, 0, 0]),
    ('cosine', [1, (1 + 0.5 ** 0.5) / 2, 0.5, (1 - 0.5 ** 0.5) / 2, 0, 0])])
def test_rates_fall_from_one_to_nothing(schedule, wanted):
    assert [rate_factor(schedule, step, 4) for step in (0, 1, 2, 3, 4, 7)] == pytest.approx(wanted)


def test_the_error_is_summed_over_channels_and_averaged_over_places():
    output = torch.arange(16.0).view(2, 2, 2, 2)
    wanted = output + torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    assert float(reconstruction_loss(output, wanted, -3)) == 10
    rows = torch.zeros(4, 3)
    assert float(reconstruction_loss(rows, rows + 2, -1)) == 12
    assert float(reconstruction_loss(rows, rows - 2, -1, norm=3.0)) == pytest.approx(24)
    importance = torch.tensor([0.5, 3.0])
    assert float(reconstruction_loss(output, wanted, 1, importance=importance)) == 27.5


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, size, generator=generator).double() for size in (4, 3))
    v = torch.randn(3, 4, generator=generator).double().requires_grad_()

    def objective(v):
        h = rectified_sigmoid(v)
        return reconstruction_loss(x @ (h - 1).T, y, -1) + 0.01 * rounding_regulariser(h, 3.5)

    assert torch.autograd.gradcheck(objective, (v,))


def test_decided_are_those_at_the_ends():
    assert decided_share(torch.tensor([0.0, 1.0, 0.5, 0.999])) == 0.5
    assert decided_share(torch.empty(0)) == 1


def test_of_the_undecided_the_nearest_to_the_ends_are_most_decided():
    h = torch.tensor([[0.5, 0.95, 1.0], [0.1, 0.0, 0.3]])
    assert most_decided(h).tolist() == [[False, True, False], [True, False, False]]
    assert most_decided(h, 1.0).sum() == 4
    assert not most_decided(torch.tensor([0.0, 1.0])).any()
