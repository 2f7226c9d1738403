"""Small models, and the plain quadratic calibration that lockstep must agree with."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from mmbitsplit.calibration import build_method, calibrate
from mmbitsplit.models import (
    PreparedModel,
    QuantizedLayer,
    apply,
    layer_input,
    prepare,
    quantized_layers,
    watch,
)
from mmbitsplit.models.watch.merged_flow import merge_flows
from mmbitsplit.passes.call_counts import reached_by, totals
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.planning import make_plan
from mmbitsplit.solving.solve_layer import solve_layer
from mmbitsplit.structures import QuantSpec

__all__ = ['assert_like_naive', 'assert_same_state', 'images', 'layer_calls', 'make_spec',
           'residual_net', 'run_model', 'seeded']  # fixtures: what a folder's conftest takes


def call(model: nn.Module, batch):
    return model(batch)


class Block(nn.Module):
    """Conv, batch norm, ReLU in place, conv, batch norm, residual add in place, ReLU in place."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class ResidualNet(nn.Module):
    """A stem, two residual blocks and two heads."""

    def __init__(self, channels: int = 6):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.classify = nn.Linear(channels, 4)
        self.regress = nn.Conv2d(channels, 2, 1)

    def forward(self, x):
        x = self.blocks(self.relu(self.bn(self.stem(x))))
        return self.classify(x.mean((2, 3))), self.regress(x)


def _seeded(make, seed: int = 0) -> nn.Module:
    """Builds a model with weights of its own and batch norms that do something."""
    torch.manual_seed(seed)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def _images(count: int = 4, size: int = 8, channels: int = 3, seed: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, size, size, generator=generator) for _ in range(count)]


def _spec(**changes) -> QuantSpec:
    """A small request: few rows, so that positions are really sampled."""
    calibration = {'rows_per_layer': 256, 'holdout': 0.25, **changes.pop('calibration', {})}
    return QuantSpec.from_dict({'calibration': calibration, **changes})


@contextmanager
def _calls_of(layer: nn.Module):
    """Collects copies of the layer's inputs and outputs."""
    seen = []
    handle = layer.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(
            (layer_input(args, kwargs).clone(), output.clone())), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _naive_calibrate(model: nn.Module, batches, spec: QuantSpec, run=call) -> PreparedModel:
    """Layer by layer, re-runs the float and the so far quantized model on every batch."""
    flows = [watch(model.eval(), lambda batch=batch: run(model, batch), inputs=batch)
             for batch in batches]
    counts = {number: flow.calls for number, flow in enumerate(flows)}
    merged = merge_flows(flows)
    flow = flows[0] if merged.calls == flows[0].calls else merged  # others showed something new
    prepared = prepare(model, flow, make_plan(model, flow, spec))
    reference = copy.deepcopy(model)
    method = build_method(spec.method)
    sampler = Sampler(spec.calibration, len(batches),
                      {name: flow.calls[name] for name in prepared.layers})
    sampler.reached.update(reached_by(counts, prepared.layers))
    if flow is not flows[0] or sampler.far_off(counts):
        sampler.totals.update(totals(counts, prepared.layers))
    for plan in prepared.plan.layers:
        layer, captures, targets = prepared.layers[plan.name], [], []
        for index, batch in enumerate(batches):
            with torch.no_grad():
                with _calls_of(dict(quantized_layers(reference))[plan.name]) as float_calls:
                    run(reference, batch)
                with _calls_of(layer) as quantized_calls:
                    run(model, batch)
            assert len(float_calls) == len(quantized_calls)
            for number, (x, output) in enumerate(float_calls):
                targets.append(sampler.target(plan.name, layer, number, index, x.shape, output))
            for number, (x, _) in enumerate(quantized_calls):
                captures.append(sampler.capture(plan.name, layer, number, index, x))
        apply(layer, solve_layer(layer, plan, method, captures, targets).solution)
    return prepared


def _assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def _assert_like_naive(make, batches, spec: QuantSpec, run=call):
    """Calibrates two copies of a model, in lockstep and naively, and compares bit for bit."""
    ours, theirs = make(), make()
    theirs.load_state_dict(ours.state_dict())
    prepared, report = calibrate(ours, copy.deepcopy(batches), spec, run=run)
    _naive_calibrate(theirs, copy.deepcopy(batches), spec, run=run)
    _assert_same_state(ours, theirs)
    names = [layer.name for layer in report.layers]
    assert sorted(names) == sorted(prepared.layers) and len(set(names)) == len(names)
    with torch.no_grad():
        for batch in copy.deepcopy(batches):
            for output in torch.utils._pytree.tree_leaves(run(ours, batch)):
                assert torch.isfinite(output).all()
    return ours, report


def _count_layer_calls(monkeypatch) -> dict[int, int]:
    """Counts, by layer identity, how often prepared layers really compute."""
    counts: dict[int, int] = {}
    forward = QuantizedLayer.forward

    def counting(self, *args, **kwargs):
        counts[id(self)] = counts.get(id(self), 0) + 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(QuantizedLayer, 'forward', counting)
    return counts


@pytest.fixture
def residual_net():
    return lambda seed=0: _seeded(ResidualNet, seed)


@pytest.fixture
def seeded():
    return _seeded


@pytest.fixture
def images():
    return _images


@pytest.fixture
def make_spec():
    return _spec


@pytest.fixture
def run_model():
    return call


@pytest.fixture
def assert_like_naive():
    return _assert_like_naive


@pytest.fixture
def assert_same_state():
    return _assert_same_state


@pytest.fixture
def layer_calls(monkeypatch):
    return _count_layer_calls(monkeypatch)
