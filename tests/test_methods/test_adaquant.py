"""AdaQuant against the paper's formulas, rounding, and layers that it must not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmbitsplit.calibration import calibrate, read_request
from mmbitsplit.methods import AdaQuant

ALL = {'rows_per_layer': 256, 'holdout': 0.0}  # nothing held out: all images are fitted to
RATES = dict(weight_rate=2e-3, bias_rate=1e-2, weight_range_rate=2e-2, input_range_rate=5e-2)


def request(bits=3, input_bits=4, changes=None, **options):
    return read_request({
        'weight': dict(num_bits=bits), 'activation': dict(num_bits=input_bits),
        'calibration': dict(rows_per_layer=256, holdout=0.25),
        'first_last': dict(weight_bits=None, activation_bits=input_bits),
        'method': dict(type='AdaQuant', **options), **(changes or {})})


def rows(count=64, inputs=8, seed=0):
    """Inputs (count, inputs) that go together, which roundings can make use of."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator)
    return x + 1.5 * torch.randn(count, 1, generator=generator)


def chain(seed=1):
    """Two layers, the second read as it is and given inputs of two sides."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 4))


@pytest.fixture
def candidates(monkeypatch):
    """What is learned of each unit, whether it is taken or not, by unit."""
    given, solve = {}, AdaQuant.solve_unit

    def watched(self, problem):
        for candidate in solve(self, problem):
            given[problem.unit.name] = candidate
            yield candidate

    monkeypatch.setattr(AdaQuant, 'solve_unit', watched)
    return given


def codes_of(prepared):
    return torch.cat([layer.codes.flatten() for layer in prepared.layers.values()])


def straight(value, low, high):
    """Clipped and rounded, with the gradient of clipping; what lies at an end is inside."""
    inside = (value > low - 1e-5) & (value < high + 1e-5)
    clipped = torch.where(inside, value, torch.minimum(torch.maximum(value, low), high))
    return clipped + (clipped.round() - clipped).detach()


def learned_by_the_paper(layer, x, wanted, iterations, offset):
    """Ranges seen, then real weights, bias, ranges and zero points by Adam, all rows a step."""
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    shift = torch.zeros(4, 1)  # of a channel's weights
    if offset:
        shift = (weight.amax(1, keepdim=True) + weight.amin(1, keepdim=True)) / 2
    spread = 2 * (weight - shift).abs().amax(1, keepdim=True)  # what 7 codes cover
    low, high = x.min().clamp(max=0).reshape(1), x.max().clamp(min=0)
    reach = high - low  # what 16 codes cover
    begun = reach / 15
    low = -(-low / begun).round() * begun
    learned = [weight, bias, spread, reach, low, *([shift] if offset else [])]
    rates = [RATES[name] for name in ('weight_rate', 'bias_rate', 'weight_range_rate',
                                      'input_range_rate', 'input_range_rate', 'weight_range_rate')]
    adams = [torch.optim.Adam([part.requires_grad_()], lr=rate)
             for part, rate in zip(learned, rates)]
    three = torch.tensor(3.0)

    def quantized():
        """Codes, what is added where gradients reach it, and the input's grid."""
        place = -low / begun
        zero = place + (place.round().clamp(0, 15) - place).detach()
        codes = straight((weight - shift.detach()) / (spread / 6), -three, three)
        inside = ((weight - shift) / (spread / 6)).abs() < 3 + 1e-5
        return codes, torch.where(inside, shift.detach(), shift), reach / 15, zero

    for _ in range(iterations):
        codes, added, step, zero = quantized()
        real = codes * spread / 6 + added
        output = straight(x / step, -zero, 15 - zero) * step @ real.T + bias
        for adam in adams:
            adam.zero_grad()
        (output - wanted).square().sum(1).mean().backward()
        for adam in adams:
            adam.step()
    with torch.no_grad():
        codes, _, step, zero = quantized()
        product = spread.flatten() / 6 * step  # in steps of which the bias is told
        return {'codes': codes.round().to(torch.int8), 'weight_scale': product,
                'bias': (bias / product).round() * product, 'scale': step,
                'offset': shift.flatten() * step, 'zero_point': zero.round()}


@pytest.mark.parametrize('flavour', ['sequential', 'parallel'])
@pytest.mark.parametrize('offset', [False, True])
@pytest.mark.parametrize('iterations', [0, 2, 5])
def test_what_is_learned_is_what_the_papers_formulas_give(flavour, offset, iterations, run_model,
                                                          candidates):
    x, model = rows(), chain()
    layer = nn.Linear(6, 4)
    layer.load_state_dict(model[2].state_dict())
    with torch.no_grad():
        given = model[1](model[0](x))
        wanted = layer(given)
    prepared, _ = calibrate(
        model, [x[:40], x[40:]], request(
            changes={'calibration': ALL}, iterations=iterations, batch_size=64, flavour=flavour,
            weight_offset=offset, **RATES), run=run_model)
    if flavour == 'sequential':
        with torch.no_grad():
            given = model[1](prepared.layers['0'](x))
    expected = learned_by_the_paper(layer, given, wanted, iterations, offset)
    found = candidates['2'].solutions['2']
    assert torch.equal(found.codes, expected['codes'])
    assert torch.equal(found.qparams.zero_point.float(), expected['zero_point'])
    assert (found.weight_offset is None) == (not offset)
    for one, name in ((found.weight_scale, 'weight_scale'), (found.bias, 'bias'),
                      (found.qparams.scale, 'scale'), (found.weight_offset, 'offset')):
        if one is not None:
            torch.testing.assert_close(one, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('granularity', ['layer', 'block'])
@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
def test_without_iterations_it_is_rounding_bit_for_bit(mode, granularity, residual_net, images,
                                                       run_model, assert_same_state, candidates):
    ours, theirs = residual_net(), residual_net()
    changes = {'activation': dict(num_bits=4, mode=mode, symmetry='asymmetric')}
    prepared, report = calibrate(ours, images(), request(
        changes=changes, iterations=0, granularity=granularity), run=run_model)
    calibrate(theirs, images(), request(changes={
        **changes, 'weight': dict(num_bits=3, scale_search='minmax'),
        'activation': dict(num_bits=4, mode=mode, symmetry='asymmetric', scale_search='minmax'),
        'method': dict(type='RoundToNearest')}), run=run_model)
    assert_same_state(ours, theirs)
    assert {len(unit.layers) for unit in report.units} == ({1} if granularity == 'layer'
                                                           else {1, 2})
    for layer in report.layers:
        assert layer.unit_errors['learned'] == layer.unit_errors['layers']
        solution = candidates[layer.unit].solutions[layer.name]
        assert torch.equal(solution.codes, prepared.layers[layer.name].codes)


def test_in_parallel_a_layer_does_not_depend_on_the_bits_of_others(run_model, candidates):
    found = []
    for flavour in ('parallel', 'sequential'):
        for bits in (2, 8):
            x = rows()
            calibrate(chain(), [x[:40], x[40:]], request(
                iterations=20, flavour=flavour, changes={'overrides': [
                    dict(match='0', weight=dict(num_bits=bits))]}, **RATES), run=run_model)
            found.append(candidates['2'].solutions['2'])
    for one, other, same in ((*found[:2], True), (*found[2:], False)):
        for name in ('codes', 'weight_scale', 'bias'):
            assert torch.equal(getattr(one, name), getattr(other, name)) == same
        assert torch.equal(one.qparams.scale, other.qparams.scale) == same


def test_scales_that_parallel_layers_cannot_have_are_named(run_model):
    with pytest.raises(ValueError, match="'2'.*mode='ecaq'.*flavour='parallel'.*'per_tensor'"):
        calibrate(chain(), [rows()], request(flavour='parallel', changes={
            'activation': dict(num_bits=4, mode='ecaq')}), run=run_model)


@pytest.mark.parametrize('granularity', ['layer', 'block'])
def test_it_lowers_the_error_of_rounding_on_images_not_looked_at(granularity, residual_net, images,
                                                                 run_model):
    prepared, report = calibrate(residual_net(), images(8), request(
        iterations=120, batch_size=16, granularity=granularity, weight_rate=1e-3,
        weight_range_rate=3e-3, input_range_rate=1e-2), run=run_model)
    gains = {layer.unit: layer.unit_errors['learned'] / layer.unit_errors['layers']
             for layer in report.layers if layer.role == 'inner'}
    assert sum(gains.values()) < 0.9 * len(gains), gains
    assert any(layer.unit_figures['learned']['codes_moved_far'] > 0 for layer in report.layers)
    assert any('% of the codes moved' in note for note in report.layers[1].notes)
    for layer in prepared.layers.values():  # plain again, as files hold them
        layer.check_whole('', 'it is looked at')
        assert not any(value.requires_grad for value in layer.parameters())


def test_codes_are_the_same_for_the_same_seed_alone(residual_net, images, run_model):
    codes = []
    for seed in (0, 0, 1):
        prepared, _ = calibrate(residual_net(), images(), request(
            iterations=15, batch_size=3, changes={'calibration': dict(
                rows_per_layer=256, holdout=0.25, seed=seed)}, **RATES), run=run_model)
        codes.append(codes_of(prepared))
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4), bits=st.sampled_from([2, 4, 8]),
       input_bits=st.sampled_from([None, 2, 8]), seed=st.integers(0, 99),
       flavour=st.sampled_from(['sequential', 'parallel']), offset=st.booleans(),
       everywhere=st.booleans())
def test_whatever_the_net_it_ends_no_worse_than_rounding(sizes, bits, input_bits, seed, flavour,
                                                         offset, everywhere):
    torch.manual_seed(seed)
    layers = [nn.Linear(one, other) for one, other in zip(sizes, sizes[1:])]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.GELU())])
    x = rows(inputs=sizes[0], seed=seed)
    prepared, report = calibrate(model, [x[:40], x[40:]], request(
        bits, input_bits, iterations=5, flavour=flavour, weight_offset=offset,
        clipped_gradient=everywhere, **RATES), run=lambda model, batch: model(batch))
    for layer in report.layers:
        assert layer.unit_errors[layer.unit_taken] == min(layer.unit_errors.values())
        solution = prepared.layers[layer.name].solution()
        assert solution.codes.abs().max() <= 2 ** (bits - 1) - 1
        assert bool((solution.weight_scale > 0).all())
        assert solution.qparams is None or bool((solution.qparams.scale > 0).all())
