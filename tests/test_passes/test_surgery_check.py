"""A forward that does not repeat itself is told from layers that cannot be quantized."""

import itertools

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import calibrate

# Opened, watched, run to compare with, compared, then four times with noise: the prepared model's
# run is the one that differs.
CHOICES = [True, True, True, False, True, True, True, True]


class Chooses(nn.Module):
    """Runs a branch in some forwards, by what no seed of ours reaches."""

    def __init__(self, choices):
        super().__init__()
        self.choose = lambda: next(choices)
        self.a, self.branch, self.b = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.a(x).relu()
        return self.b(self.branch(x).relu() if self.choose() else x)


@pytest.mark.parametrize('choices', [itertools.chain(CHOICES, itertools.repeat(False)),
                                     itertools.cycle(CHOICES)])
def test_a_forward_that_does_not_repeat_itself_is_refused(choices, make_spec):
    torch.manual_seed(0)
    model = Chooses(choices).eval()
    with pytest.raises(ValueError, match=(
            "does not repeat itself: run twice on batch 0.*the output of 'branch' comes in "
            'another number or shape.*random choice in forward')):
        calibrate(model, [torch.randn(6, 8)], make_spec(), run=lambda model, x: model(x))
    assert all(type(layer) is nn.Linear for layer in (model.a, model.branch, model.b))
