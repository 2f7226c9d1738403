"""The loss of three groups of widths against three lines of NumPy."""

import pytest
import torch

from mmbitsplit.functional.solvers.group_distillation import group_distillation_loss


def mean_square(output, wanted):
    return (output - wanted).square().mean()


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 4, 7, generator=generator)  # low, middle, high, mixed, float


def test_it_is_the_papers_formula(outputs):
    low, middle, high, mixed, wanted = outputs.numpy()
    found = group_distillation_loss(outputs[:3], outputs[3], outputs[4], (2, 3, 5), mean_square)
    first, second, third = (((a - b) ** 2).mean() for a, b in (
        (mixed, wanted), (high, middle), (high, low)))
    assert float(found) == pytest.approx(2 * first + 3 * second + 5 * third, rel=1e-5)


@pytest.mark.parametrize('detached', [True, False])
def test_the_high_group_is_drawn_to_the_others_unless_detached(outputs, detached):
    groups = [one.clone().requires_grad_() for one in outputs[:3]]
    loss = group_distillation_loss(groups, outputs[3], outputs[4], (0, 1, 1), mean_square,
                                   detach_high=detached)
    loss.backward()
    assert groups[0].grad is not None and groups[1].grad is not None
    assert (groups[2].grad is None) == detached
