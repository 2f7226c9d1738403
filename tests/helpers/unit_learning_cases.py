"""Units to learn roundings of, for tests: small networks, calibrated as far as a unit."""

import pytest
import torch
from torch import nn
from unit_methods import WATCHER

from mmbitsplit.calibration import calibrate
from mmbitsplit.methods.unit_learning import Push
from mmbitsplit.methods.unit_learning_optimizers import ParameterGroup
from mmbitsplit.methods.unit_learning_state import soften

INNER = dict(first_last=dict(weight_bits=None, activation_bits=None))

SCALE_FREE = dict(loss='scale_free', push=Push(weight=1.0))


@pytest.fixture
def solved(make_spec, run_model, monkeypatch):
    """Calls a function with each unit of a model, solved; returns what it gave, by unit."""
    def solve(model, batches, do, bits=3, input_bits=4, holdout=0.25, **changes):
        given = {}

        def once(problem):
            given[problem.unit.name] = do(problem)
            return ()

        monkeypatch.setitem(WATCHER, 'solve', once)
        spec = make_spec(**{**INNER, 'weight': dict(num_bits=bits),
                            'activation': dict(num_bits=input_bits), **changes},
                         method=dict(type='Watched'), calibration=dict(holdout=holdout))
        calibrate(model, batches, spec, run=run_model)
        return given
    return solve


def rounding_group(problem, start='solver', rate=0.02, reach=1.0):
    return ParameterGroup(parameters=soften(problem, start, reach), learning_rate=rate)


def chain(seed, *sizes):
    torch.manual_seed(seed)
    layers = [nn.Linear(one, other) for one, other in zip(sizes, sizes[1:])]
    return nn.Sequential(*[module for layer in layers for module in (layer, nn.ReLU())][:-1])


def rows(count=64, inputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator)
    return x + 1.5 * torch.randn(count, 1, generator=generator)
