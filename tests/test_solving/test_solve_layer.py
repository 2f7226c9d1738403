"""Modes, strengths, and the guard on single layers and small nets."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import METHODS, Method, build_method, calibrate, register_method
from mmbitsplit.models import QuantizedLayer, layer_geometry
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.solving.solve_layer import solve_layer
from mmbitsplit.structures import LayerPlan, QuantSpec, WeightSolution

MODES = ('per_tensor', 'per_channel', 'ecaq')


def solve(layer, x_float, x_quantized, spec):
    """Solves one layer from one input of each pass, and returns it with its report."""
    prepared = QuantizedLayer(layer_geometry(layer), layer.weight, layer.bias)
    sampler = Sampler(spec.calibration, 1, {'layer': 1})
    targets = [prepared.float_rows() @ sampler.patches('layer', prepared, 0, 0, x_float)]
    captures = [sampler.capture('layer', prepared, 0, 0, x_quantized)]
    plan = LayerPlan('layer', spec.weight, spec.activation)
    solved = solve_layer(prepared, plan, build_method(spec.method), captures, targets)
    prepared.install(solved.solution)
    return prepared, solved


def correlated(count: int, channels: int, seed: int = 0, spread: float = 0.0) -> torch.Tensor:
    """(count, channels) inputs that share a few causes, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(count, channels // 4, generator=generator)
    mix = torch.randn(channels // 4, channels, generator=generator)
    x = causes @ mix + 0.3 * torch.randn(count, channels, generator=generator)
    ranges = torch.logspace(-spread, spread, channels)
    return torch.relu(x) * ranges[torch.randperm(channels, generator=generator)]


def output_error(layer, quantized, x) -> float:
    with torch.no_grad():
        y = layer(x)
        return float((y - quantized(x)).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('symmetry', ['auto', 'signed', 'asymmetric'])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_every_mode_runs_and_more_bits_are_better_than_none(mode, symmetry, bits, make_spec):
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    x = correlated(512, 16) - (0.0 if symmetry == 'auto' else 0.2)
    spec = make_spec(weight=dict(num_bits=bits),
                     activation=dict(num_bits=8, mode=mode, symmetry=symmetry))
    quantized, solved = solve(layer, x, x, spec)
    bound = 3 * 4.0 ** -bits + 1e-3
    assert output_error(layer, quantized, x) < bound and solved.error < bound
    assert quantized.qparams.scale.numel() == (1 if mode == 'per_tensor' else 16)
    assert solved.strength is None if mode != 'ecaq' else 0 <= solved.strength <= 1


@pytest.mark.parametrize('layer', [
    lambda: nn.Linear(6, 4), lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    lambda: nn.ConvTranspose2d(6, 4, 2, stride=2)])
@pytest.mark.parametrize('shift', [0.0, 1.0])
def test_ecaq_of_no_strength_is_per_tensor(layer, shift, make_spec):
    torch.manual_seed(1)
    layer = layer()
    x = torch.randn(4, 6, 5, 6) * torch.arange(1, 7).view(6, 1, 1) - shift
    x = x if not isinstance(layer, nn.Linear) else x.movedim(1, -1)
    ours, _ = solve(layer, x, x, make_spec(activation=dict(mode='ecaq', strength=0)))
    theirs, _ = solve(layer, x, x, make_spec(activation=dict(mode='per_tensor')))
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours(x), theirs(x))


def test_ecaq_helps_where_the_ranges_of_channels_differ(make_spec):
    torch.manual_seed(2)
    layer = nn.Linear(16, 12)
    x = correlated(2000, 16, spread=1.0)
    layer.weight.data /= x.std(0)  # every channel matters alike
    errors = {}
    for name, options in (('per_tensor', dict(mode='per_tensor')),
                          ('ecaq', dict(mode='ecaq', strength=1)),
                          ('auto', dict(mode='ecaq')),
                          ('per_channel', dict(mode='per_channel'))):
        spec = make_spec(activation=dict(num_bits=4, **options),
                         calibration=dict(rows_per_layer=1000))
        errors[name] = output_error(layer, solve(layer, x, x, spec)[0], x)
    assert errors['ecaq'] < 0.5 * errors['per_tensor']
    assert errors['auto'] < 0.5 * errors['per_tensor']
    assert errors['per_channel'] < 0.7 * errors['per_tensor']


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_bit_split_beats_rounding_on_unseen_inputs(bits, make_spec):
    torch.manual_seed(3)
    layer = nn.Linear(32, 16)
    seen, unseen = correlated(3000, 32).split([2000, 1000])
    errors = {}
    for name in ('RoundToNearest', 'BitSplit'):
        spec = make_spec(weight=dict(num_bits=bits), method=dict(type=name),
                         calibration=dict(rows_per_layer=2000))
        quantized, _ = solve(layer, seen, seen, spec)
        errors[name] = output_error(layer, quantized, unseen)
    assert errors['BitSplit'] < 0.7 * errors['RoundToNearest']


def test_the_float_model_is_the_target(make_spec):
    """An input that quantization before the layer has shrunk is made good by the layer."""
    torch.manual_seed(4)
    layer = nn.Linear(16, 8)
    x = correlated(1000, 16)
    quantized, _ = solve(layer, x, 0.5 * x, make_spec(weight=dict(num_bits=8)))
    with torch.no_grad():
        error = (layer(x) - quantized(0.5 * x)).square().mean() / layer(x).var()
    assert error < 0.02  # 0.25 and more if the weights stayed as they are


@dataclass(frozen=True)
class Rubbish(Method):
    """A method that returns useless codes."""

    value: Any = 1.0  # not finite either
    bias_correction: bool = False
    guard: bool = True

    def solve(self, statistics, weight, num_bits):
        scale = torch.full(weight.shape[:2], self.value, dtype=torch.float64)
        return WeightSolution(torch.ones(weight.shape, dtype=torch.int8), scale, scale,
                              num_sweeps=5)

    def quick(self):
        return self


@pytest.fixture
def rubbish():
    register_method(Rubbish)
    yield Rubbish
    del METHODS['Rubbish']


@pytest.mark.parametrize('value', [1.0, 1e20, float('nan'), float('inf')])
@pytest.mark.parametrize('mode', ['per_tensor', 'ecaq'])
def test_the_guard_replaces_rubbish_by_rounding(value, mode, rubbish, residual_net, images,
                                                make_spec, run_model, assert_same_state):
    activation = dict(mode=mode, **(dict(strength=0.5) if mode == 'ecaq' else {}))
    model = residual_net()
    _, report = calibrate(model, images(), make_spec(
        activation=activation, method=dict(type='Rubbish', value=value)), run=run_model)
    assert all(layer.guard_taken for layer in report.layers)
    assert all(layer.error == layer.error_rounding for layer in report.layers)
    rounded = residual_net()
    calibrate(rounded, images(), make_spec(
        activation=activation, method=dict(type='MSE')), run=run_model)
    assert_same_state(model, rounded)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e20])
@pytest.mark.parametrize('bits', [4, 8])  # of the weights: the strongest or the weakest ECAQ first
def test_the_guard_is_reached_where_no_strength_gives_a_solution(
        value, bits, rubbish, residual_net, images, make_spec, run_model):
    _, report = calibrate(residual_net(), images(), make_spec(
        weight=dict(num_bits=bits), method=dict(type='Rubbish', value=value)), run=run_model)
    assert all(layer.guard_taken for layer in report.layers)
    assert all(layer.error == layer.error_rounding < 1 for layer in report.layers)


def test_without_guard_rubbish_is_kept(rubbish, residual_net, images, make_spec, run_model):
    _, report = calibrate(residual_net(), images(), make_spec(
        method=dict(type='Rubbish', guard=False)), run=run_model)
    assert not any(layer.guard_taken for layer in report.layers)
    assert any(layer.error > layer.error_rounding for layer in report.layers)


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_default_is_never_worse_than_rounding_on_held_out_positions(bits, residual_net, images,
                                                                    make_spec, run_model):
    for seed in range(2):
        _, report = calibrate(residual_net(seed), images(seed=seed), make_spec(
            weight=dict(num_bits=bits)), run=run_model)
        assert all(layer.error <= layer.error_rounding for layer in report.layers)


@pytest.mark.parametrize('holdout', [0, 0.125, 0.5])
def test_held_out_positions_are_not_fitted_to(holdout, make_spec):
    """Changing the targets of held-out positions changes the reported error only."""
    torch.manual_seed(5)
    layer = nn.Linear(8, 4)
    x = correlated(256, 8)
    spec = make_spec(activation=dict(mode='per_tensor'),
                     calibration=dict(holdout=holdout, rows_per_layer=256))
    prepared = QuantizedLayer(layer_geometry(layer), layer.weight, layer.bias)
    sampler = Sampler(spec.calibration, 1, {'layer': 1})
    capture = sampler.capture('layer', prepared, 0, 0, x)
    target = prepared.float_rows() @ capture.patches
    assert capture.held_out.float().mean() == holdout
    plan = LayerPlan('layer', spec.weight, spec.activation)
    method = build_method({'type': 'BitSplit', 'guard': False})
    changed = torch.where(capture.held_out, 3 * target, target)
    ours, theirs = (solve_layer(prepared, plan, method, [capture], [y])
                    for y in (target, changed))
    assert torch.equal(ours.solution.codes, theirs.solution.codes)
    assert torch.equal(ours.solution.bias, theirs.solution.bias)
    assert (ours.error != theirs.error) == (holdout > 0)


@pytest.mark.parametrize('holdout, positions, said', [
    (0, 256, True), (0.125, 256, False), (0.125, 5, True), (0.4, 5, False)])
def test_it_is_said_where_nothing_is_held_out(holdout, positions, said, make_spec):
    layer, x = nn.Linear(8, 4), correlated(positions, 8)
    _, solved = solve(layer, x, x, make_spec(calibration=dict(holdout=holdout)))
    assert any('no positions are held out' in note for note in solved.notes) == said


def test_a_dead_input_gives_finite_codes(make_spec):
    layer = nn.Linear(8, 4)
    for x in (torch.zeros(100, 8), correlated(100, 8) * (torch.arange(8) % 2)):
        for mode in MODES:
            quantized, solved = solve(layer, x, x, make_spec(activation=dict(mode=mode)))
            assert torch.isfinite(quantized(x)).all() and solved.error == solved.error


def test_a_spec_reads_the_options_of_a_method():
    spec = QuantSpec.from_dict(dict(method=dict(type='BitSplit', init='mse', polish=False)))
    method = build_method(spec.method)
    assert method.init == 'mse' and method.polish is False
    with pytest.raises(ValueError, match="'polsh'.*did you mean 'polish'"):
        build_method(dict(type='BitSplit', polsh=True))
    with pytest.raises(ValueError, match="'Bitsplit'.*did you mean 'BitSplit'"):
        build_method(dict(type='Bitsplit'))
    with pytest.raises(ValueError, match='guard'):
        build_method(dict(type='RoundToNearest', guard=True))
