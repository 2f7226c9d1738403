"""QDrop against the paper's formulas, rounding, and units without anything dropped."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.methods import QDrop
from mmbitsplit.methods.qdrop import dropped_quantization
from mmbitsplit.methods.unit_learning_draws import Draw

ALL = {'rows_per_layer': 256, 'holdout': 0.0}  # nothing held out: all images are fitted to
FAST = dict(iterations=60, learning_rate=0.02, batch_size=16)


def request(bits=3, input_bits=4, changes=None, **options):
    return read_request({
        'weight': dict(num_bits=bits), 'activation': dict(num_bits=input_bits),
        'calibration': dict(rows_per_layer=256, holdout=0.25),
        'first_last': dict(weight_bits=None, activation_bits=input_bits),
        'method': dict(type='QDrop', **options), **(changes or {})})


def rows(count=64, inputs=8, seed=0):
    """Inputs (count, inputs) that go together, which roundings can make use of."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator)
    return x + 1.5 * torch.randn(count, 1, generator=generator)


@pytest.fixture
def problems(monkeypatch):
    """Calls ``look(problem)`` with each unit, solved, before it is learned; gives the candidates,
    whether they are taken or not, by unit."""
    solve = QDrop.solve_unit

    def watch(look=lambda problem: None):
        given = {}

        def watched(self, problem):
            look(problem)
            for candidate in solve(self, problem):
                given[problem.unit.name] = candidate
                yield candidate

        monkeypatch.setattr(QDrop, 'solve_unit', watched)
        return given
    return watch


@pytest.mark.parametrize(('mode', 'placement'), [
    ('per_tensor', 'inputs'), ('per_channel', 'inputs'), ('ecaq', 'inputs'), ('ecaq', 'deploy')])
def test_without_iterations_it_is_rounding_bit_for_bit(mode, placement, residual_net, images,
                                                       run_model, problems):
    candidates = problems()
    prepared, report = calibrate(residual_net(), images(), request(iterations=0, changes={
        'activation': dict(num_bits=4, mode=mode, placement=placement)}), run=run_model)
    for layer in report.layers:
        assert layer.unit_errors['learned rounding'] == layer.unit_errors['layers']
        one = candidates[layer.unit].solutions[layer.name]
        other = prepared.layers[layer.name].solution()
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.weight_scale, other.weight_scale)
        assert one.bias is None or torch.equal(one.bias, other.bias)


@pytest.mark.parametrize('placement', ['inputs', 'deploy'])
def test_with_nothing_dropped_a_unit_is_the_quantized_one_and_with_all_the_float_inputs(
        placement, residual_net, images, run_model, problems):
    seen = []

    def look(problem):
        x, seed = problem.fit[0].quantized_input, torch.Generator().manual_seed(0)
        plain = problem.forward(x)
        with dropped_quantization(problem, 0.0, seed):
            assert torch.equal(problem.forward(x), plain)
        with dropped_quantization(problem, 1.0, seed):
            all_dropped = problem.forward(x)
        assert torch.equal(problem.forward(x), plain)
        before = problem.solutions()
        for name, layer in problem.layers.items():
            # In real units; weights that carry the scales of their inputs let go of them.
            scale = before[name].weight_scale
            if before[name].qparams is not None and before[name].qparams.unit:
                scale = scale / before[name].qparams.scale
            layer.install(replace(before[name], qparams=None, output_qparams=None,
                                  weight_scale=scale))
        torch.testing.assert_close(problem.forward(x), all_dropped, rtol=1e-4, atol=1e-4)
        for name, layer in problem.layers.items():
            layer.install(before[name])
        seen.append(problem.unit.name)

    problems(look)
    calibrate(residual_net(), images(), request(iterations=0, changes={
        'activation': dict(num_bits=4, mode='per_tensor', placement=placement)}), run=run_model)
    assert {'blocks.0', 'blocks.1'} <= set(seen)


@pytest.mark.parametrize('drop', [0.0, 0.5])
@pytest.mark.parametrize('iterations', [1, 2, 8])
def test_what_is_learned_is_what_the_papers_formulas_give(drop, iterations, run_model, problems):
    """A unit of two layers, all images in each step, masks drawn by hand from the steps' seeds."""
    torch.manual_seed(2)
    model, x, seen = nn.Sequential(nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 4)), rows(), {}

    def look(problem):
        seen.update(problem=problem, start=problem.solutions(),
                    float=[(layer.weight, layer.bias) for layer in problem.layers.values()])

    candidates = problems(look)
    calibrate(model, [x[:40], x[40:]], request(
        changes={'calibration': ALL}, iterations=iterations, batch_size=64, learning_rate=0.02,
        scale_rate=0.02, drop_probability=drop), run=run_model)
    (candidate,), (first, last) = candidates.values(), seen['start'].values()
    (weight, bias), (weight2, bias2) = seen['float']
    scale = last.qparams.scale.clone()
    steps = [first.weight_scale.unsqueeze(1), (last.weight_scale / scale).unsqueeze(1)]
    floors, v = [], []
    for one, step in zip((weight, weight2), steps):
        place = (one / step).clamp(-3.5, 3.5)  # beyond the range as far as half a step
        code = (one / step).round().clamp(-3, 3)
        up = (place >= code) & (code < 3) | (code == -3)
        floors.append(torch.where(up, code, code - 1))
        h = (place - floors[-1]).clamp(0, 1)
        v.append((-(1.2 / (h + 0.1) - 1).log()).requires_grad_())
    learned_scale = scale.clone().requires_grad_()
    adam, adam_scale = torch.optim.Adam(v, lr=0.02), torch.optim.Adam([learned_scale], lr=0.02)
    zero = last.qparams.zero_point.float()
    with torch.no_grad():
        wanted = model[1](x @ weight.T + bias) @ weight2.T + bias2
    for step in range(iterations):
        generator = seen['problem'].generator(step)
        torch.multinomial(torch.ones(1).double(), 1, generator=generator)
        order = torch.randperm(64, generator=generator).sort().values
        seeds = [int(torch.randint(1 << 62, (), generator=generator)) for _ in range(2)]
        kept = torch.rand(64, 6, generator=torch.Generator().manual_seed(seeds[1])) >= drop
        h = [(one.sigmoid() * 1.2 - 0.1).clamp(0, 1) for one in v]
        hidden = x[order] @ ((floors[0] + h[0]) * steps[0]).T + bias
        hidden = hidden * hidden.sigmoid()
        place = hidden / learned_scale
        clipped = torch.minimum(torch.maximum(place, -zero), 15 - zero)
        rounded = (clipped + (clipped.round() - clipped).detach()) * learned_scale
        output = torch.where(kept, rounded, hidden) @ ((floors[1] + h[1]) * steps[1]).T + bias2
        loss = (output - wanted[order]).square().sum(1).mean()
        if step >= 0.2 * iterations:
            beta = 20 - 18 * (step / iterations - 0.2) / 0.8
            loss = loss + 0.01 * sum((1 - (2 * one - 1).abs() ** beta).sum() for one in h)
        adam_scale.param_groups[0]['lr'] = 0.02 * 0.5 * float(
            1 + torch.cos(torch.tensor(torch.pi * step / iterations)))
        for one in (adam, adam_scale):
            one.zero_grad()
        loss.backward()
        for one in (adam, adam_scale):
            one.step()
    found = list(candidate.solutions.values())
    for solution, floor, one in zip(found, floors, v, strict=True):
        assert torch.equal(solution.codes, (floor + (one >= 0)).to(torch.int8))
    scale = learned_scale.detach()
    torch.testing.assert_close(found[1].qparams.scale, scale, rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1].weight_scale, steps[1].flatten() * scale, rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1].bias, (bias2 / found[1].weight_scale).round()
                               * found[1].weight_scale)


def test_elements_of_the_units_input_come_from_both_models():
    draw = Draw(quantized_input=torch.ones(40, 50), float_input=torch.zeros(40, 50),
                float_output=torch.zeros(40, 1), group=0)
    for probability in (0.0, 0.3, 1.0):
        x = QDrop(drop_probability=probability)._mixed_input(draw, torch.Generator())
        assert float(x.mean()) == pytest.approx(1 - probability, abs=0.05)
        assert set(x.unique().tolist()) <= {0.0, 1.0}


def test_it_lowers_the_error_of_rounding_on_images_not_looked_at(residual_net, images, run_model):
    prepared, report = calibrate(residual_net(), images(8), request(**FAST), run=run_model)
    gains = {layer.unit: layer.unit_errors['learned rounding'] / layer.unit_errors['layers']
             for layer in report.layers if layer.role == 'inner'}
    assert set(gains) == {'blocks.0', 'blocks.1'} and max(gains.values()) < 0.9, gains
    assert any('% of the roundings were decided' in note for note in report.layers[1].notes)
    for layer in prepared.layers.values():  # plain again, as files hold them
        layer.check_whole('', 'it is looked at')


def test_neighbouring_blocks_are_learned_together(residual_net, images, run_model):
    _, report = calibrate(residual_net(), images(8), request(**FAST, merge=2), run=run_model)
    (unit,) = [unit for unit in report.units if len(unit.layers) > 1]
    assert unit.modules == ('blocks.0', 'blocks.1') and len(unit.layers) == 4
    (errors,) = {tuple(layer.unit_errors.items()) for layer in report.layers
                 if layer.unit == 'blocks.0'}
    assert dict(errors)['learned rounding'] < 0.9 * dict(errors)['layers']


def test_scales_of_outputs_are_learned_too(residual_net, images, run_model, problems):
    seen = {}

    def look(problem):
        seen[problem.unit.name] = problem.solutions()

    candidates = problems(look)
    calibrate(residual_net(), images(), request(**{**FAST, 'iterations': 5}, scale_rate=1e-3,
                                                changes={'activation': dict(
                                                    num_bits=4, placement='deploy')}),
              run=run_model)
    moved = [candidates[unit].solutions[name].output_qparams.scale != one.output_qparams.scale
             for unit, solutions in seen.items() for name, one in solutions.items()
             if one.output_qparams is not None]
    assert len(moved) > 1 and all(bool(one.all()) for one in moved)


def test_codes_are_the_same_for_the_same_seed_alone(residual_net, images, run_model, problems):
    codes = []
    for seed in (0, 0, 1):
        candidates = problems()
        calibrate(residual_net(), images(), request(
            **{**FAST, 'iterations': 10, 'batch_size': 64}, changes={'calibration': dict(
                rows_per_layer=256, holdout=0.25, seed=seed)}), run=run_model)
        codes.append(torch.cat([one.codes.flatten() for candidate in candidates.values()
                                for one in candidate.solutions.values()]))
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=5), bits=st.sampled_from([2, 4, 8]),
       input_bits=st.sampled_from([None, 2, 8]), seed=st.integers(0, 99),
       drop=st.sampled_from([0.0, 0.5, 1.0]), loss=st.sampled_from(['published', 'scale_free']))
def test_whatever_the_net_it_ends_no_worse_than_rounding(sizes, bits, input_bits, seed, drop, loss):
    torch.manual_seed(seed)
    layers = [nn.Linear(one, other) for one, other in zip(sizes, sizes[1:])]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.GELU())])
    x = rows(inputs=sizes[0], seed=seed)
    prepared, report = calibrate(model, [x[:40], x[40:]], request(
        bits, input_bits, drop_probability=drop, loss=loss, **{**FAST, 'iterations': 5}),
        run=lambda model, batch: model(batch))
    for layer in report.layers:
        assert layer.unit_errors[layer.unit_taken] == min(layer.unit_errors.values())
        solution = prepared.layers[layer.name].solution()
        assert solution.codes.abs().max() <= 2 ** (bits - 1) - 1
        assert solution.qparams is None or bool((solution.qparams.scale > 0).all())
