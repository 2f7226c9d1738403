"""Every method against what it stands for: its rule, its defaults, small nets end to end."""

import dataclasses
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import METHODS, build_method, calibrate, read_request
from mmbitsplit.functional import (
    add_ridge,
    feedback_factor,
    layer_statistics,
    quadratic_objective,
    round_weight,
    weight_scale,
)
from mmbitsplit.methods.rounding import RoundingMethod
from mmbitsplit.structures import RowStatistics

SMALL = {'calibration': dict(rows_per_layer=256, holdout=0.25)}
QUICK = {'LAPQ': dict(max_iterations=0),  # Powell's method has tests of its own
         'AdaRound': dict(iterations=5), 'AdaQuant': dict(iterations=5),
         'QDrop': dict(iterations=5), 'PTMQ': dict(iterations=2, widths=(4, 6)),
         'BRECQ': dict(iterations=5, input_iterations=3)}


def named(name, **options):
    return {'type': name, **QUICK.get(name, {}), **options}


def problem(groups=1, outputs=6, inputs=12, positions=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, inputs, positions, generator=generator).double()
    x = x + x.roll(1, 1)  # neighbours agree, which error feedback lives on
    weight = torch.randn(groups, outputs, inputs, generator=generator).double()
    return x, weight @ x, weight


def test_a_package_that_is_missing_is_said_before_anything_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, 'scipy', None)  # cannot be imported then
    with pytest.raises(ValueError, match=r"LAPQ needs the package 'scipy'.*mmbitsplit\[lapq\]"):
        read_request({'method': dict(type='LAPQ')})
    assert read_request({'method': named('LAPQ')}).method['type'] == 'LAPQ'  # needs none


@pytest.mark.parametrize(('mapping', 'wanted'), [
    ({}, ('mse', 'auto', 'ecaq', 'auto', 'auto')),
    ({'method': dict(type='RoundToNearest')},
     ('minmax', 'minmax', 'per_tensor', 'asymmetric', 'auto')),
    ({'method': dict(type='RoundToNearest', scale_search='mse')},
     ('mse', 'mse', 'per_tensor', 'auto', 'auto')),
    ({'method': dict(type='MSE')}, ('mse', 'mse', 'per_tensor', 'auto', 'auto')),
    ({'method': dict(type='KLDivergence')}, ('minmax', 'kl', 'per_tensor', 'auto', 'auto')),
    ({'method': dict(type='ACIQ')}, ('minmax', 'aciq_laplace', 'per_channel', 'auto', 'auto')),
    ({'method': dict(type='ACIQ', distribution='gauss')},
     ('minmax', 'aciq_gauss', 'per_channel', 'auto', 'auto')),
    ({'method': dict(type='LAPQ')}, ('mse', 'lp', 'per_tensor', 'auto', 'auto')),
    ({'method': dict(type='ErrorFeedback')}, ('mse', 'mse', 'per_tensor', 'auto', 'auto')),
    ({'method': dict(type='AdaRound')}, ('mse', 'mse', 'per_tensor', 'auto', 'auto')),
    ({'method': dict(type='AdaQuant')}, ('minmax', 'minmax', 'per_tensor', 'asymmetric', 'auto')),
    ({'method': dict(type='QDrop')}, ('mse', 'lp', 'per_tensor', 'asymmetric', 'auto')),
    ({'method': dict(type='PublishedBitSplit')}, ('mse', 'mse', 'ecaq', 'auto', 1.0)),
    # What is written wins, over one option or all.
    ({'method': dict(type='KLDivergence'), 'activation': dict(mode='ecaq', num_bits=4)},
     ('minmax', 'kl', 'ecaq', 'auto', 'auto')),
    ({'method': dict(type='ACIQ'), 'weight': dict(scale_search='mse'),
      'activation': dict(scale_search='mse', mode='per_tensor')},
     ('mse', 'mse', 'per_tensor', 'auto', 'auto')),
])
def test_a_method_fills_what_a_request_leaves_open(mapping, wanted):
    spec = read_request(mapping)
    assert (spec.weight.scale_search, spec.activation.scale_search, spec.activation.mode,
            spec.activation.symmetry, spec.activation.strength) == wanted
    assert read_request(spec.to_dict()) == spec  # a full request stays as it is


def test_bit_allocation_comes_with_aciq_mix_alone():
    allocations = {name: read_request({'method': named(name)}).activation.bit_allocation
                   for name in METHODS}
    assert allocations.pop('ACIQMix') == 'aciq'
    assert set(allocations.values()) == {'uniform'}


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
@pytest.mark.parametrize('name', sorted(METHODS))
def test_every_method_runs_in_every_mode(name, mode, residual_net, images, run_model):
    """Table 2: how inputs are quantized is a choice of its own."""
    model, wanted = residual_net(), residual_net()
    spec = read_request({**SMALL, 'weight': dict(num_bits=6), 'method': named(name),
                         'activation': dict(num_bits=6, mode=mode)})
    prepared, report = calibrate(model, images(), spec, run=run_model)
    assert {layer.activation_mode for layer in report.layers} == {mode, None}
    unseen = torch.cat(images(2, seed=99))
    with torch.no_grad():
        for ours, theirs in zip(model(unseen), wanted(unseen)):
            assert float((ours - theirs).square().mean() / theirs.var()) < 0.05
    if name != 'ACIQMix':
        assert all(layer.qparams is None or layer.qparams.channel_max is None
                   for layer in prepared.layers.values())


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('name', sorted(METHODS))
def test_codes_fit_and_the_objective_is_that_of_the_weight(name, bits):
    x, y, weight = problem(groups=2)
    statistics = layer_statistics(x, y)
    method = build_method(named(name))
    solved = method.solve(statistics, weight, bits)
    assert solved.codes.shape == weight.shape and solved.scale.shape == weight.shape[:2]
    width = bits if solved.num_bits is None else solved.num_bits.unsqueeze(-1)
    assert (solved.codes.abs() <= 2 ** (width - 1) - 1).all()
    if name not in ('BitSplit', 'NestedBitSplit'):  # whose objective has a ridge
        torch.testing.assert_close(solved.objective, quadratic_objective(
            statistics.gram, statistics.cross, statistics.y_sq, solved.weight))


@pytest.mark.parametrize('name', [name for name, cls in METHODS.items()
                                  if issubclass(cls, RoundingMethod)])
def test_rounding_methods_say_the_same_from_rows(name):
    x, y, weight = problem()
    rows = RowStatistics(x=x, y=y, x_sum=x.sum(-1), y_sum=y.sum(-1), count=x.shape[-1])
    method = build_method(named(name))
    ours, theirs = method.solve_rows(rows, weight, 3), method.solve(
        layer_statistics(x, y), weight, 3)
    assert torch.equal(ours.codes, theirs.codes)
    torch.testing.assert_close(ours.objective, theirs.objective)


def test_tf_lite_gives_the_extremes_the_outermost_codes(residual_net, images, run_model):
    """By hand: weights by the largest of a channel, inputs by the range seen, with zero point."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    batch = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tanh = model[1](model[0](batch))
        weight = model[2].weight.clone()
    quantize_model(model, [batch], dict(
        weight=dict(num_bits=4), activation=dict(num_bits=4),
        first_last=dict(weight_bits=8, activation_bits=None), method=dict(type='RoundToNearest'),
        calibration=dict(rows_per_layer=64)))
    layer = model[2]
    top = weight.abs().amax(1) / 7
    assert torch.equal(layer.codes, (weight / top.unsqueeze(1)).round().to(torch.int8))
    scale = float(layer.qparams.scale)
    # The first layer has 8 bits, so its outputs are the float ones but for little.
    assert scale == pytest.approx(float(tanh.max() - tanh.min()) / 15, rel=0.02)
    assert int(layer.qparams.zero_point) == round(float(-tanh.min()) / scale)
    assert layer.qparams.quant_min == 0 and layer.qparams.quant_max == 15


@pytest.mark.parametrize('target', ['weight', 'output'])
def test_gptq_is_error_feedback_of_the_damped_gram(target):
    x, y, weight = problem(seed=3)
    y = y + 0.5 * x[:, :6]  # the float output is not that of the weight here
    statistics = layer_statistics(x, y)
    solved = build_method(dict(type='ErrorFeedback', target=target)).solve(statistics, weight, 3)
    damped = add_ridge(statistics, weight, 0.01)
    cross = damped.cross if target == 'output' else weight @ damped.gram
    factor = feedback_factor(damped.gram, cross)
    scale = weight_scale(weight, 3, 'mse')
    assert torch.equal(solved.codes, factor.round(scale, 3).to(torch.int8))
    assert torch.equal(solved.scale, scale)
    goal = weight[0] if target == 'weight' else torch.linalg.solve(
        damped.gram[0], damped.cross[0].T).T
    torch.testing.assert_close(factor.target[0], goal[:, factor.order[0]])


def test_gptq_beats_rounding_to_its_own_grid():
    x, y, weight = problem(outputs=20, inputs=30, positions=500)
    statistics = layer_statistics(x, y)
    feedback = build_method(dict(type='ErrorFeedback')).solve(statistics, weight, 3)
    rounded = build_method(dict(type='MSE')).solve(statistics, weight, 3)
    assert torch.equal(feedback.scale, rounded.scale)
    assert float(feedback.objective.sum()) < 0.7 * float(rounded.objective.sum())


def test_gptq_of_rows_is_that_of_sums_where_one_part_holds_all():
    x, y, weight = problem(outputs=5)
    rows = RowStatistics(x=x, y=y, x_sum=x.sum(-1), y_sum=y.sum(-1), count=x.shape[-1])
    method = build_method(dict(type='ErrorFeedback'))
    ours, theirs = method.solve_rows(rows, weight, 4), method.solve(
        layer_statistics(x, y), weight, 4)
    assert float((ours.codes != theirs.codes).double().mean()) < 0.05


def test_aciq_restores_what_rounding_took_from_the_weights():
    _, _, weight = problem(outputs=8, inputs=40)
    statistics = layer_statistics(*problem(outputs=8, inputs=40)[:2])
    corrected, plain = (build_method(dict(type='ACIQ', weight_correction=on)).solve(
        statistics, weight, 3) for on in (True, False))
    torch.testing.assert_close(corrected.weight.mean(-1), weight.mean(-1))
    torch.testing.assert_close(corrected.weight.std(-1), weight.std(-1))
    assert torch.equal(corrected.codes, plain.codes) and plain.offset is None
    assert torch.equal(plain.scale, weight_scale(weight, 3, 'minmax'))


@pytest.mark.parametrize('distribution', ['gauss', 'laplace'])
def test_aciq_clips_weights_where_asked_to(distribution):
    _, _, weight = problem(outputs=8, inputs=400)
    statistics = layer_statistics(*problem(outputs=8, inputs=400)[:2])
    solved = build_method(dict(type='ACIQ', weight_clipping=distribution,
                               weight_correction=False)).solve(statistics, weight, 3)
    top = weight_scale(weight, 3, 'minmax')
    assert (solved.scale <= top).all() and solved.scale.mean() < 0.95 * top.mean()
    assert torch.equal(solved.codes, round_weight(weight, solved.scale, 3).to(torch.int8))


@pytest.mark.parametrize('bits', [3, 4])
def test_aciq_mix_keeps_the_average_and_says_so(bits, seeded, residual_net, images, run_model):
    def uneven():
        model = residual_net()
        for block in model.blocks:
            block.bn1.weight.data *= torch.logspace(-1, 1, 6)  # channels differ in width
        return model

    model = uneven()
    spec = read_request({**SMALL, 'weight': dict(num_bits=bits), 'method': named('ACIQMix'),
                         'activation': dict(num_bits=bits)})
    prepared, report = calibrate(model, images(), spec, run=run_model)
    inner = [layer for layer in report.layers if layer.role == 'inner']
    assert inner and all(f'{bits:.2f} on average' in note for layer in inner
                         for note in layer.notes)
    widths = set()
    for row in inner:
        layer = prepared.layers[row.name]
        channel_bits = (layer.qparams.channel_max.double() + 1).log2()
        assert float(channel_bits.mean()) == bits
        assert layer.num_bits == max(layer.num_bits, bits)
        assert layer.codes.abs().max() <= 2 ** (layer.num_bits - 1) - 1
        widths |= set(channel_bits.tolist())
    assert len(widths) > 1
    clone = uneven()
    with torch.no_grad():
        assert torch.isfinite(model(images()[0])[0]).all()
        assert not torch.equal(model(images()[0])[0], clone(images()[0])[0])


def test_published_bit_split_is_the_default_with_its_additions_off(residual_net, images, run_model,
                                                                   assert_same_state):
    ours, theirs = residual_net(), residual_net()
    calibrate(ours, images(), read_request({**SMALL, 'method': named('PublishedBitSplit')}),
              run=run_model)
    calibrate(theirs, images(), read_request({
        **SMALL, 'activation': dict(mode='ecaq', scale_search='mse', strength=1.0),
        'method': dict(
            type='BitSplit', init='mse', polish=False, ridge=0.0, bias_correction=False,
            guard=False)}), run=run_model)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize(('config', 'message'), [
    (dict(type='LAPQ', norms=()), r'norms=\(\)'), (dict(type='MSE', guard=True), 'guard=True'),
    (dict(type='ACIQ', distribution='normal'), "distribution='normal'.*Allowed: gauss, laplace"),
    (dict(type='ACIQMix', weight_clipping='gaus'), "did you mean 'gauss'"),
    (dict(type='LAPQ', loss='crossentropy'), "did you mean 'cross_entropy'"),
    (dict(type='ErrorFeedback', target='weights'), "did you mean 'weight'"),
    (dict(type='KLDivergance'), "did you mean 'KLDivergence'"),
])
def test_options_that_make_no_sense_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        read_request({'method': config})


@pytest.mark.parametrize('config', [
    dict(type='BitSplit', max_sweeps=0, tolerance=0, ridge=None),
    dict(type='BitSplit', max_sweeps=np.int64(3), ridge=1, tolerance=np.float32(.5)),
    dict(type='LAPQ', norms=[2, 3.5])])
def test_options_of_a_fitting_type_are_taken(config):
    method = build_method(config)
    assert all(getattr(method, name) == value for name, value in config.items() if name != 'type')


TRUTH = ('True or False', ['False', 'no', 1, 0.3, None])
RIDGE = ('a number from 0 or None', [-3, True, '1', math.inf])
REFUSED = {  # what an error says is allowed, and values that are not
    'init': ('Allowed: error_feedback, mse', ['MSE', 'auto', None, 1]),
    'polish': TRUTH, 'bias_correction': TRUTH, 'guard': TRUTH, 'weight_correction': TRUTH,
    'max_sweeps': ('an integer from 0', [-5, '3', 2.5, True, None]),
    'tolerance': ('a number from 0 to 1', [-0.1, 1.5, 'x', math.nan, None]),
    'ridge': RIDGE, ('ErrorFeedback', 'ridge'): ('a number above 0', [0, -1, 'small', None]),
    'target': ('Allowed: output, weight', ['inputs', None]),
    'scale_search': ('Allowed: minmax, mse', ['kl', 3]),
    'distribution': ('Allowed: gauss, laplace', ['minmax', None]),
    'weight_clipping': ('Allowed: gauss, laplace, minmax', ['mse', False]),
    'norms': ('a list, each item a number from 1', [(0.5,), '234', 2.0, [2, None], [math.inf]]),
    'loss': ('Allowed: auto, cross_entropy, squared_error', ['mse', None]),
    **{(name, 'loss'): ('Allowed: published, scale_free', ['mse', None])
       for name in ('AdaRound', 'BRECQ', 'PTMQ', 'QDrop')},
    'loss_batches': ('an integer from 1', [0, 1.5]),
    'max_iterations': ('an integer from 0', [-1, '1']),
    'max_evaluations': ('an integer from 1', [0, 10.0]),
    'iterations': ('an integer from 0', [-1, 1e4]), 'batch_size': ('an integer from 1', [0, '8']),
    'learning_rate': ('a number above 0', [0, None]),
    'regularization': ('a number from 0', [-0.1, 'auto']),
    'warm_start': ('a number from 0 to 1', [-0.1, 1.5]),
    'input_iterations': ('an integer from 0', [-1, 1e4]),
    'input_rate': ('a number above 0', [0, None]),
    'drop_probability': ('a number from 0 to 1', [-0.1, 1.5, None]),
    'merge': ('an integer from 1', [0, 1.5]),
    'flavour': ('Allowed: parallel, sequential', ['paralel', None]),
    'weight_offset': TRUTH, 'clipped_gradient': TRUTH,
    **{name: ('a number above 0', [0, -1e-3, '1e-3', None]) for name in (
        'scale_rate', 'weight_rate', 'bias_rate', 'weight_range_rate', 'input_range_rate')},
    'importance': ('Allowed: fisher, none', ['hessian', None]),
    'effort': ('Allowed: best, default, fast', ['slow', None]),
    ('PublishedBitSplit', 'effort'): ('Allowed: fast', ['default', None]),
    'granularity': ('Allowed: block, layer, net, stage', ['row', None]),
    'widths': ('a list, each item an integer from 2 to 8', [[4, 9], 4, '48', None]),
    'activation_widths': ("'tied' or a list, each item an integer from 2 to 8", [[1], 8, None]),
    'groups': ('a list, each item a list, each item an integer from 2 to 8', [[3, 4, 6], 'low']),
    'mixer': ('Allowed: case1, case2, case3', ['case4', None]),
    **{name: ('a list, each item a number from 0', [[-1, 1, 1], 1.0, None])
       for name in ('lambdas', 'gammas')},
    **{name: TRUTH for name in ('detach_high', 'drop_inside', 'fallback')},
    'start': ('Allowed: lowest, mean', ['high', None]),
    'strategy': ('Allowed: direct, high_to_low, low_to_high, mixed', ['ptmq', None]),
    'direct_bits': ('an integer from 2 to 8 or None', [1, '3']),
    'nesting': ('Allowed: floor, planes', ['prefix', None]),
    'order': ('Allowed: joint, up', ['down', None]),
    'reference_bits': ('an integer from 2 to 8', [1, 9, 4.5]),
    'branches': ("'auto' or 'all' or an integer from 1", [0, 'none', 1.5]),
}


@pytest.mark.parametrize(('name', 'option'), [
    (name, field.name) for name, cls in METHODS.items() for field in dataclasses.fields(cls)])
def test_every_option_of_every_method_is_held_to_its_declaration(name, option):
    allowed, values = REFUSED.get((name, option)) or REFUSED[option]
    for value in values:
        wanted = re.escape(f'{option}={value!r} is not ') + f'.*{allowed}'
        for make in (METHODS[name], lambda **given: replace(METHODS[name](), **given),
                     lambda **given: build_method({'type': name, **given})):
            with pytest.raises(ValueError, match=wanted):
                make(**{option: value})


@pytest.mark.parametrize(('activation', 'message'), [
    (dict(scale_search='kl', symmetry='asymmetric'), "scale_search='kl'.*'signed'"),
    (dict(norm=0.5), 'norm=0.5')])
def test_activation_options_that_make_no_sense_are_named(activation, message):
    with pytest.raises(ValueError, match=message):
        read_request({'activation': activation})
