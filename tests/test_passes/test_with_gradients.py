"""What a forward that keeps gradients must leave as it is."""

import copy

import pytest
import torch

from mmbitsplit.passes.with_gradients import KeepGradients


@pytest.mark.parametrize('grad', [False, True])
def test_copies_made_while_gradients_are_kept_are_of_their_own_tensors(grad):
    with KeepGradients():
        ones = [1 * torch.randn(2, size + 1, requires_grad=grad) for size in range(50)]
        copies = copy.deepcopy(ones + ones)
    assert all(map(torch.equal, copies, ones + ones))
    assert all(copies[place] is copies[place + 50] for place in range(50))
