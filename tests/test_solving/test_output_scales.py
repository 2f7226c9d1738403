"""Quantized outputs: chosen on what the solved layer gives, simulated from then on."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import Team, calibrate
from mmbitsplit.functional import fake_quantize, quantization_error
from mmbitsplit.models import QuantizedLayer, describe, layer_geometry, rebuild
from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.solving.input_scales import Candidate
from mmbitsplit.solving.output_scales import search_output_qparams
from mmbitsplit.structures import (
    ActivationSpec,
    LayerPlan,
    LayerSolution,
    OutputPlan,
    QParams,
    WeightSpec,
)

DEPLOY = dict(activation=dict(placement='deploy'))
INPUTS = {'float': None, 'unit': QParams(torch.tensor([0.02]), torch.tensor([3.0]), 0, 255),
          'per_channel': QParams(torch.full((6,), 0.02), torch.zeros(6), 0, 255, unit=False)}


def make_solution(seed=0, bias=True, **changes):
    """Of a grouped convolution of 6 inputs and 8 outputs."""
    torch.manual_seed(seed)
    layer = nn.Conv2d(6, 8, 3, groups=2)
    codes = torch.randint(-7, 8, layer.weight.shape).to(torch.int8)
    return layer_geometry(layer), LayerSolution(
        codes=codes, num_bits=4, weight_scale=torch.rand(8) + 0.1,
        bias=torch.randn(8) * 9 if bias else None, **changes)


def make_captures(counts=(20, 31, 0, 25)):
    """A call of each batch, its patches on an input whose output has as many positions."""
    captures, generator = [], torch.Generator().manual_seed(5)
    for batch, count in enumerate(counts):
        patches = torch.rand(2, 27, count, generator=generator) * 4
        captures.append(CallCapture(
            patches=patches, samples=torch.empty(6, 0), low=torch.zeros(6), high=torch.zeros(6),
            held_out=torch.zeros(count, dtype=torch.bool), shape=(1, 6, 9, 9), batch=batch))
    return captures


def make_plan(rectified=False, bits=8, search='mse'):
    return LayerPlan('layer', WeightSpec(4), ActivationSpec(8, scale_search=search),
                     output=OutputPlan(bits, rectified))


def outputs_of(geometry, solution, captures):
    """(8, K): the layer's own forward, called on inputs that are one kernel large."""
    layer = QuantizedLayer(geometry, torch.zeros(geometry.weight_shape), None)
    layer.install(replace(solution, output_qparams=None))
    patches = torch.cat([capture.patches for capture in captures], -1)  # (2, 27, K)
    return layer(patches.permute(2, 0, 1).reshape(-1, 6, 3, 3))[..., 0, 0].T


def search(solution, geometry, captures, plan, team=None):
    return search_output_qparams(solution, Candidate(solution.qparams), captures, geometry, plan,
                                 team or Team())


@pytest.mark.parametrize('inputs', INPUTS)
@pytest.mark.parametrize('bias', [True, False])
def test_minmax_covers_just_what_the_layer_gives(inputs, bias):
    geometry, solution = make_solution(bias=bias, qparams=INPUTS[inputs])
    captures = make_captures()
    y = outputs_of(geometry, solution, captures)
    assert y.min() < 0 < y.max()
    found = search(solution, geometry, captures, make_plan(search='minmax'))
    assert found.scale.shape == found.zero_point.shape == (1,) and not found.unit
    lowest, highest = ((code - found.zero_point) * found.scale
                       for code in (found.quant_min, found.quant_max))
    step = float(found.scale)
    assert lowest <= y.min() + step and highest >= y.max() - step
    assert lowest >= y.min() - step or highest <= y.max() + step  # and no wider than needed


@pytest.mark.parametrize('bits', [3, 4, 8])
@pytest.mark.parametrize('rectified', [True, False])
def test_mse_is_no_worse_than_minmax_and_than_scales_around_it(bits, rectified):
    geometry, solution = make_solution(qparams=INPUTS['unit'])
    captures = make_captures()
    y = outputs_of(geometry, solution, captures)
    y = y.relu() if rectified else y

    def error(qparams):
        return float(quantization_error(y, qparams).sum())
    found = search(solution, geometry, captures, make_plan(rectified, bits))
    assert error(found) <= error(search(solution, geometry, captures,
                                        make_plan(rectified, bits, 'minmax'))) * (1 + 1e-6)
    for factor in (0.7, 0.85, 1.2, 1.5):
        assert error(found) < error(replace(found, scale=found.scale * factor))


def test_readers_that_rectify_leave_all_codes_to_positive_values():
    geometry, solution = make_solution(qparams=INPUTS['unit'])
    captures = make_captures()
    y = outputs_of(geometry, solution, captures)
    found = search(solution, geometry, captures, make_plan(rectified=True))
    signed = search(solution, geometry, captures, make_plan())
    assert found.quant_min == 0 and not found.zero_point.any()
    assert torch.equal(fake_quantize(y, found).relu(), fake_quantize(y.relu(), found))
    errors = [(fake_quantize(y, qparams).relu() - y.relu()).square().sum()
              for qparams in (found, signed)]
    assert errors[0] < errors[1]


def test_a_layer_that_gives_nothing_but_zero():
    geometry, solution = make_solution(qparams=INPUTS['unit'])
    solution = replace(solution, codes=torch.zeros_like(solution.codes),
                       bias=torch.zeros(8))
    found = search(solution, geometry, make_captures(), make_plan())
    assert torch.equal(fake_quantize(torch.zeros(1, 3), found), torch.zeros(1, 3))


# Whole models


@pytest.fixture
def deployed(residual_net, images, make_spec, run_model):
    """A calibrated residual net, its report and its batches."""
    model, batches = residual_net(), images(4)
    prepared, report = calibrate(model, batches, make_spec(**DEPLOY), run=run_model)
    return prepared, report, batches


def test_the_report_says_which_outputs_are_quantized(deployed):
    prepared, report, _ = deployed
    bits = {layer.name: layer.output_bits for layer in report.layers}
    assert bits == {'stem': None, 'blocks.0.conv1': None, 'blocks.0.conv2': 8,
                    'blocks.1.conv1': None, 'blocks.1.conv2': 8, 'classify': None,
                    'regress': None}
    for name, layer in prepared.layers.items():
        assert (layer.output_qparams is not None) == (bits[name] is not None)


def test_outputs_lie_on_the_grid_and_the_rest_is_as_without(deployed):
    prepared, _, batches = deployed
    layer, seen = prepared.layers['blocks.0.conv2'], []
    handle = layer.register_forward_hook(
        lambda module, args, output: seen.append((args[0].clone(), output.clone())))
    prepared.model(batches[0])
    handle.remove()
    (x, y), = seen
    bare = copy.deepcopy(layer)
    bare.quantize_output(None)
    expected, grid = bare(x), layer.output_qparams
    codes = torch.clamp(torch.round(expected / grid.scale) + grid.zero_point, grid.quant_min,
                        grid.quant_max)
    assert torch.equal(y, (codes - grid.zero_point) * grid.scale)
    step = float(grid.scale)
    assert 0 < (y - expected).abs().max() and (y - expected).abs().median() <= step / 2


@pytest.mark.parametrize('options', [
    dict(), dict(mode='per_tensor', output_bits=4), dict(num_bits=4, scale_search='minmax')],
    ids=str)
def test_later_layers_are_calibrated_on_quantized_outputs(
        options, assert_like_naive, residual_net, images, make_spec):
    """As re-running the model so far for every layer does; that it differs shows it matters."""
    spec = make_spec(activation=dict(placement='deploy', **options))
    ours, _ = assert_like_naive(residual_net, images(4), spec)
    plain, _ = assert_like_naive(residual_net, images(4), make_spec(activation={
        name: value for name, value in options.items() if name != 'output_bits'}))
    assert torch.equal(ours.blocks[0].conv2.codes, plain.blocks[0].conv2.codes)
    assert not torch.equal(ours.blocks[1].conv2.weight, plain.blocks[1].conv2.weight)


def test_a_head_that_levels_share_is_calibrated_like_naive(assert_like_naive, seeded, images,
                                                           make_spec):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
            self.tower, self.cls = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
            self.reg = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            fine = self.stem(x).relu()
            towers = [self.tower(level).relu_() for level in (fine, self.down(fine))]
            return [(self.cls(tower), self.reg(tower)) for tower in towers]
    ours, report = assert_like_naive(lambda: seeded(Shared), images(4), make_spec(**DEPLOY))
    assert {layer.name for layer in report.layers if layer.output_bits} == {'tower'}
    assert int(ours.tower.output_qparams.zero_point) == 0
    assert ours.tower(torch.randn(1, 4, 5, 5)).min() >= 0


def test_the_model_stays_close_to_one_with_float_outputs(deployed, residual_net, images,
                                                         make_spec, run_model):
    reference, plain, unseen = residual_net(), residual_net(), images(2, seed=99)
    calibrate(plain, images(4), make_spec(), run=run_model)

    def error(model):
        pairs = [(y, wanted) for x in unseen for y, wanted in zip(model(x), reference(x))]
        return float(sum((y - wanted).square().sum() for y, wanted in pairs)
                     / sum((wanted - wanted.mean()).square().sum() for _, wanted in pairs))
    with torch.no_grad():
        assert error(deployed[0].model) < 1.3 * error(plain) < 0.1


def test_a_checkpoint_gives_the_same_model_to_the_last_bit(deployed, residual_net):
    prepared, _, batches = deployed
    state, fresh = copy.deepcopy(prepared.model.state_dict()), residual_net()
    rebuild(fresh, describe(prepared))
    fresh.load_state_dict(state)
    with torch.no_grad():
        for batch in batches:
            for ours, wanted in zip(fresh(batch), prepared.model(batch)):
                assert torch.equal(ours, wanted)
    assert {name for name in state if 'output' in name} == {
        f'blocks.{block}.conv2.output_{name}' for block in (0, 1)
        for name in ('scale', 'zero_point')}
