"""A forward that is random is told, with the first module that shows it."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import ReplayPoint, calibrate


class Net(nn.Module):

    def __init__(self, between=lambda net, x: x):
        super().__init__()
        self.between = between
        self.a, self.drop, self.b = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4)

    def step(self, x):
        return self.between(self, x)

    def forward(self, x):
        return self.b(self.step(self.a(x).relu()))


def warnings_of(make_spec, net, points=(), run=lambda model, x: model(x)):
    torch.manual_seed(0)
    batches = [torch.randn(6, 8), torch.randn(3, 8)]
    _, report = calibrate(net.eval(), batches, make_spec(), run=run,
                          replay_points=[ReplayPoint(net, name) for name in points])
    return report.warnings


def dropout_left_on(net, x):
    net.drop.train()
    return net.drop(x)


@pytest.mark.parametrize(('between', 'place'), [
    (dropout_left_on, "what 'drop' gives"),
    (lambda net, x: F.dropout(x, 0.5), "what 'b' gets"),
    (lambda net, x: x + 0.1 * torch.randn_like(x), "what 'b' gets"),
    (lambda net, x: x[:, torch.randperm(8)], "what 'b' gets"),
    (lambda net, x: x * random.random(), "what 'b' gets"),
    (lambda net, x: x + float(np.random.rand()), "what 'b' gets"),
    (lambda net, x: x[:, np.random.permutation(8)], "what 'b' gets")])
def test_what_differs_first_is_named(make_spec, between, place):
    (warning,) = warnings_of(make_spec, Net(between))
    assert f'{place} differs' in warning and 'dropout' in warning


@pytest.mark.parametrize('between', [
    lambda net, x: x, lambda net, x: net.drop(x),
    lambda net, x: F.dropout(x, training=net.training),
    lambda net, x: x + 0 * torch.randn_like(x),  # drawn, and of no effect
    lambda net, x: x[:, torch.randperm(8, generator=torch.Generator().manual_seed(1))]])
def test_a_forward_that_gives_the_same_again_is_not_told(make_spec, between):
    assert warnings_of(make_spec, Net(between)) == []


def test_what_is_random_before_the_model_is_what_the_model_gets(make_spec):
    (warning,) = warnings_of(make_spec, Net(), run=lambda model, x: model(x + torch.rand(8)))
    assert 'what the model gets differs' in warning


def test_randomness_inside_a_replay_point_is_replayed(make_spec):
    assert warnings_of(make_spec, Net(lambda net, x: x[:, torch.randperm(8)]), ['step']) == []


def test_the_model_is_run_again_only_where_random_numbers_were_drawn(make_spec):
    def forwards(between):
        calls = []
        net = Net(lambda net, x: calls.append(1) or between(x))
        warnings_of(make_spec, net)
        return len(calls)
    assert forwards(lambda x: x + 0 * torch.rand(8)) == forwards(lambda x: x) + 2


def test_quantize_model_warns():
    net = Net(lambda net, x: F.dropout(x, 0.5)).eval()
    with pytest.warns(UserWarning, match="forward is random.*what 'b' gets"):
        quantize_model(net, [torch.randn(6, 8)])
