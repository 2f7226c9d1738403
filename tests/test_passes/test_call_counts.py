"""Which layers batches call, and which batches are worth a look."""

import pytest
import torch
from torch import nn

from mmbitsplit.models import watch
from mmbitsplit.passes.call_counts import CallCounts, batches_to_watch, reached_by, totals


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        self.extra = nn.Linear(2, 2)

    def forward(self, x, times=1, extra=False):
        for _ in range(times):
            x = self.convs(x)
        return self.extra(x) if extra else x


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return Tower()


def test_counts_and_stacks_are_those_that_watching_sees(tower):
    calls, x = CallCounts(), torch.ones(1, 2)
    layers = ['convs.0', 'convs.2', 'extra']
    for number, arguments in enumerate(((1, False), (3, True), (1, False))):
        with calls.of(number, tower, layers):
            tower(x, *arguments)
        flow = watch(tower, lambda arguments=arguments: tower(x, *arguments))
        assert calls.counts[number] == flow.calls
        assert flow.stacks in calls.patterns
    assert len(calls.patterns) == 2
    assert not any(module._forward_hooks for module in tower.modules())


COUNTS = {0: dict(a=1, b=1), 1: dict(a=2, c=1), 2: dict(a=3, c=1, b=1), 3: dict(a=3)}


def test_layers_that_batches_call_differently():
    assert totals(COUNTS, ['a', 'b']) == dict(a=9, b=2)
    assert reached_by(COUNTS, ['a', 'b']) == dict(b=[0, 2])
    assert totals({0: dict(a=2), 1: dict(a=2)}, ['a']) == {}


@pytest.mark.parametrize('known, chosen', [
    (dict(a=1, b=1), [2]),  # most of a, and c too
    (dict(a=3, b=1, c=1), []), (dict(a=3), [0, 1])])
def test_batches_that_show_something_new_are_watched(known, chosen):
    assert batches_to_watch(COUNTS, known, ['a', 'b', 'c']) == chosen
