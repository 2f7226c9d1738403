"""BRECQ against its formulas, by units of every size, and broken off."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from unit_methods import WATCHER, known  # noqa: F401

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.functional import weight_scale
from mmbitsplit.methods import BRECQ
from mmbitsplit.methods.unit_learning_activations import dropped_quantization
from mmbitsplit.methods.unit_problem import Snapshots

INNER = dict(first_last=dict(weight_bits=None, activation_bits=None))


def request(bits=3, input_bits=4, method=None, holdout=0.25, **changes):
    return read_request({
        'weight': dict(num_bits=bits), 'calibration': dict(rows_per_layer=256, holdout=holdout),
        'activation': dict(num_bits=input_bits, mode='per_tensor', scale_search='lp', norm=2.4),
        'method': method or dict(type='BRECQ'), **{**INNER, **changes}})


def rows(count=48, inputs=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, inputs, generator=generator) \
        + 1.5 * torch.randn(count, 1, generator=generator)


def chain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def by_hand(layers, biases, scales, ranges, quantized, plain, wanted, importance, steps, rates):
    """Both stages as published, all images in each step.

    Args:
        layers, biases: Float weights (M, N) and (M,); a ReLU after each but the last.
        scales: Of the inputs of all but the first layer, which stay float.
        ranges: Their (least, largest) codes less zero point.
        quantized, plain, wanted: The unit's inputs and float output.
        importance: (C,) or 1.
        steps, rates: Of both stages.

    Returns:
        Codes, the roundings' h, and the learned input scales.
    """
    weight_scales = [weight_scale(weight, 3, 'lp', 2.4).unsqueeze(1) for weight in layers]
    # Weights beyond the range may come back into it.
    floors = [(weight / scale).floor().clamp(-3, 2) for weight, scale in zip(
        layers, weight_scales)]
    rest = [(weight / scale - floor).clamp(0, 1)
            for weight, scale, floor in zip(layers, weight_scales, floors)]
    vs = [(-(1.2 / (one + 0.1) - 1).log()).requires_grad_() for one in rest]

    def run(x, weights, quantize):
        for number, (weight, bias) in enumerate(zip(weights, biases)):
            x = x if number == 0 else quantize(number - 1, x.relu())
            x = x @ weight.T + bias
        return x

    adam = torch.optim.Adam(vs, lr=rates[0])
    for step in range(steps[0]):
        hs = [(v.sigmoid() * 1.2 - 0.1).clamp(0, 1) for v in vs]
        y = run(quantized, [scale * (floor + h) for scale, floor, h in zip(
            weight_scales, floors, hs)], lambda number, x: x)
        loss = ((y - wanted).square() * importance).sum(1).mean()
        if step >= 0.2 * steps[0]:
            beta = 20 - 18 * (step / steps[0] - 0.2) / 0.8
            loss = loss + 0.01 * sum((1 - (2 * h - 1).abs() ** beta).sum() for h in hs)
        adam.zero_grad()
        loss.backward()
        adam.step()
    codes = [(floor + (v >= 0)).detach() for floor, v in zip(floors, vs)]
    weights = [scale * code for scale, code in zip(weight_scales, codes)]
    scales = [scale.clone().requires_grad_() for scale in scales]

    def fake(number, x):
        low, high = ranges[number]
        place = (x / scales[number]).clamp(low, high)
        return scales[number] * (place + (place.round() - place).detach())

    for step in range(steps[1]):
        adam = adam if step else torch.optim.Adam(scales)
        adam.param_groups[0]['lr'] = rates[1] * 0.5 * (1 + math.cos(math.pi * step / steps[1]))
        y = run(plain, weights, fake)
        loss = ((y - wanted).abs().pow(2.4) * importance).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return codes, [scale.detach() for scale in scales]


@pytest.mark.parametrize('importance', ['none', 'fisher'])
@pytest.mark.parametrize('steps', [(2, 2), (30, 5)])
def test_both_stages_are_those_of_the_formulas(steps, importance, run_model, monkeypatch):
    """The unit's float and quantized inputs differ: each stage takes its own."""
    seen = []

    def solve(problem):
        call = problem.fit[0]
        torch.manual_seed(3)
        call = replace(call, quantized_input=call.quantized_input
                       + 0.1 * torch.randn_like(call.quantized_input))
        weights = torch.tensor([0.2, 3.0, 1.0])
        problem = replace(problem, fit=(call,), importance=weights)
        inputs = [layer.input_quantizer for layer in problem.layers.values()]
        assert inputs[0] is None
        qparams = [one.solution() for one in inputs[1:]]
        before = [layer.weight_quantizer.scale.clone() for layer in problem.layers.values()]
        learned = [*BRECQ(
            iterations=steps[0], input_iterations=steps[1], learning_rate=0.2, input_rate=0.004,
            batch_size=64, importance=importance).solve_unit(problem)]
        codes, scales = by_hand(
            [layer.weight for layer in problem.layers.values()],
            [layer.bias for layer in problem.layers.values()],
            [one.scale for one in qparams],
            [(one.quant_min - int(one.zero_point), one.quant_max - int(one.zero_point))
             for one in qparams], call.quantized_input, call.float_input, call.float_output,
            weights / weights.mean() if importance == 'fisher' else 1.0, steps, (0.2, 0.004))
        solutions = [[candidate.solutions[name] for name in problem.layers]
                     for candidate in learned]
        for hard, final, code, old in zip(*solutions, codes, before):
            assert torch.equal(hard.codes, code.to(torch.int8))
            assert torch.equal(hard.codes, final.codes)
            assert torch.equal(hard.weight_scale, old)
        for final, scale, old, start in zip(solutions[1][1:], scales, before[1:], qparams):
            torch.testing.assert_close(final.qparams.scale, scale, rtol=1e-4, atol=0)
            assert not torch.allclose(scale, start.scale, rtol=1e-4)
            # Weights carry the scale of their inputs, and stay what they are in real units.
            torch.testing.assert_close(final.weight_scale, old * scale / start.scale)
        moved = sum(int((one.codes != layer.weight_quantizer.codes).sum()) for one, layer in zip(
            solved, problem.layers.values()))
        seen.append(moved)
        return ()

    solved = []
    monkeypatch.setitem(WATCHER, 'solve', lambda problem: (
        solved.extend(rounded(problem)), solve(problem))[1])
    calibrate(chain(), [rows()], request(
        method=dict(type='Watched'), holdout=0.0,
        first_last=dict(weight_bits=None, activation_bits=4)), run=run_model)
    assert len(seen) == 1 and (seen[0] > 0 or steps[0] == 2)


def rounded(problem):
    """Layers as BRECQ's own solver leaves them: at the scale of least L2.4 error."""
    found = []
    for layer in problem.layers.values():
        solution = layer.solution()
        carried = 1.0 if solution.qparams is None else solution.qparams.scale
        weight = layer.weight
        scale = weight_scale(weight, 3, 'lp', 2.4)
        codes = (weight / scale.unsqueeze(1)).round().clamp(-3, 3).to(torch.int8)
        found.append(replace(solution, codes=codes, weight_scale=scale * carried,
                             bias=layer.bias))
        layer.install(found[-1])
    return found


def test_it_lowers_the_error_of_rounding_by_units(residual_net, images, run_model):
    _, report = calibrate(residual_net(), images(8), request(method=dict(
        type='BRECQ', iterations=150, input_iterations=30, learning_rate=0.01, batch_size=8)),
        run=run_model)
    blocks = [row for row in report.layers if row.name.startswith('blocks')]
    assert {row.unit for row in blocks} == {'blocks.0', 'blocks.1'}
    for row in blocks:
        errors = row.unit_errors
        assert set(errors) == {'layers', 'learned rounding', 'learned rounding and input scales'}
        assert errors[row.unit_taken] == min(errors.values()) < 0.9 * errors['layers']
        assert row.unit_figures['learned rounding']['steps'] == 150
        assert any('with float activations inside' in note for note in row.notes)


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
def test_without_steps_it_is_rounding(mode, residual_net, images, run_model, assert_same_state):
    nets, taken = [], []
    for learn in (True, False):
        method = dict(type='BRECQ', iterations=0, input_iterations=0) if learn else \
            dict(type='AdaRound', iterations=0)
        spec = request(8, method=method, activation=dict(num_bits=4, mode=mode))
        nets.append(residual_net())
        _, report = calibrate(nets[-1], images(), spec, run=run_model)
        taken.append(report)
    for row in taken[0].layers:
        assert row.unit_errors['learned rounding'] == row.unit_errors['layers']
        assert row.unit_taken == 'layers'


@pytest.mark.parametrize(('granularity', 'units'), [
    ('layer', 7), ('block', 5), ('stage', 4), ('net', 3)])
def test_units_are_as_large_as_is_asked_for(granularity, units, residual_net, images, run_model):
    _, report = calibrate(residual_net(), images(), request(method=dict(
        type='BRECQ', iterations=3, input_iterations=2, granularity=granularity)), run=run_model)
    assert len(report.units) == units
    assert all(row.unit_figures['learned rounding']['steps'] == 3 for row in report.layers)


def test_squared_gradients_are_gathered_where_channels_are_weighed(residual_net, images,
                                                                   run_model):
    codes = {}
    for importance in ('none', 'fisher'):
        prepared, report = calibrate(residual_net(), images(8), request(method=dict(
            type='BRECQ', iterations=60, learning_rate=0.05, importance=importance,
            input_iterations=2)), run=run_model)
        assert ('importance' in report.seconds) == (importance == 'fisher')
        assert all(row.unit_figures['learned rounding']['hard_error'] < 1 for row in report.layers)
        codes[importance] = prepared.layers['blocks.1.conv2'].codes
    assert not torch.equal(codes['none'], codes['fisher'])


def test_residual_streams_are_float_in_the_first_stage_and_keep_their_scales(
        residual_net, images, run_model, monkeypatch):
    levels = {}

    def look(problem):
        x = problem.fit[0].quantized_input
        with torch.no_grad():
            plain = len(problem.forward(x).unique())
            with dropped_quantization(problem, 1.0, torch.Generator()):
                levels[problem.unit.name] = len(problem.forward(x).unique())
            assert len(problem.forward(x).unique()) == plain
        if problem.unit.name == 'blocks.0':  # nothing adds to what the other gives
            assert plain <= 8 < levels[problem.unit.name]
        first, last = (solved(problem, stage) for stage in (0, 1))
        for name, layer in problem.layers.items():
            before, after = first[name].qparams, last[name].qparams
            if before is not None:
                shared = bool(layer.plan.stream)
                assert torch.equal(before.scale, after.scale) == shared
        return ()

    def solved(problem, stage):
        candidates = [*BRECQ(iterations=2, input_iterations=4, batch_size=4).solve_unit(problem)]
        return candidates[min(stage, len(candidates) - 1)].solutions

    monkeypatch.setitem(WATCHER, 'solve', look)
    calibrate(residual_net(), images(), request(3, method=dict(type='Watched'), activation=dict(
        num_bits=3, placement='residual')), run=run_model)
    assert {'blocks.0', 'blocks.1'} <= set(levels)


def test_weights_alone_have_no_second_stage(residual_net, images, run_model):
    _, report = calibrate(residual_net(), images(), request(
        method=dict(type='BRECQ', iterations=3), input_bits=None), run=run_model)
    assert all(set(row.unit_errors) == {'layers', 'learned rounding'} for row in report.layers)


class Memory(Snapshots):
    """Keeps each state, and breaks off after some of them."""

    def __init__(self, most):
        self.state, self.most = None, most

    def load(self):
        return self.state

    def due(self):
        return True

    def save(self, state):
        self.state, self.most = state, self.most - 1
        if self.most == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize('most', [2, 4, 6])
def test_broken_off_in_either_stage_it_ends_alike(most, residual_net, images, run_model,
                                                  monkeypatch):
    method = BRECQ(iterations=4, input_iterations=4, learning_rate=0.1, batch_size=2)
    looked_at = []

    def solve(problem):
        start = problem.solutions()
        whole = [*method.solve_unit(problem)]
        snapshots = Memory(most)
        for _ in range(2):
            for name, layer in problem.layers.items():
                layer.install(start[name])
            try:
                again = [*method.solve_unit(replace(problem, snapshots=snapshots))]
            except KeyboardInterrupt:
                again = []
        assert [one.name for one in again] == [one.name for one in whole]
        for one, other in zip(again, whole):
            for name, solution in one.solutions.items():
                assert torch.equal(solution.codes, other.solutions[name].codes)
                assert torch.equal(solution.weight_scale, other.solutions[name].weight_scale)
        looked_at.append(problem.unit.name)
        return ()

    monkeypatch.setitem(WATCHER, 'solve', solve)
    calibrate(residual_net(), images(), request(method=dict(type='Watched')), run=run_model)
    assert 'blocks.1' in looked_at
