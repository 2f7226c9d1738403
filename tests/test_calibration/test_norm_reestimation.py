"""Norms rebuilt behind quantized layers: against norms that are really there, in training mode."""

import copy
from dataclasses import replace

import pytest
import torch
from calibration_nets import Block
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import calibrate
from mmbitsplit.functional import whole_steps
from mmbitsplit.functional.norm_statistics import (
    mean_and_variance,
    output_moments,
    renormalization,
)
from mmbitsplit.methods import RoundToNearest
from mmbitsplit.models import prepare, quantized_layers, watch
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer
from mmbitsplit.models.surgery.fold_bn import read_norm
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.moments_pass import MomentsPass
from mmbitsplit.passes.replay import Tape
from mmbitsplit.planning import make_plan

STAGE = dict(type='NormReestimation', guard=False)
WEIGHTS = dict(weight=dict(num_bits=2), activation=dict(num_bits=None), method=dict(type='MSE'))


@torch.no_grad()
def settled(model, images):
    """The model, its running statistics those of the images, as training would leave them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    x = torch.cat(images)
    model.train()(x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # they are unbiased
            count = x.shape[0] * x.shape[2] * x.shape[3]
            module.running_var *= (count - 1) / count
    return model.eval()


class Levels(nn.Module):
    """A convolution with a norm that is called twice, then on what comes of the first call."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.shared = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        first = self.shared(torch.relu(self.norm(self.stem(x))))
        return self.last(self.shared(first[..., ::2, ::2]))


@pytest.fixture
def net(residual_net, images):
    return lambda: settled(residual_net(), images(4))


@pytest.fixture
def norms(net):
    """The folded norms, by layer."""
    names = {'stem': 'bn', **{f'blocks.{block}.conv{number}': f'blocks.{block}.bn{number}'
                              for block in (0, 1) for number in (1, 2)}}
    model = net()
    return {layer: read_norm(model.get_submodule(norm)) for layer, norm in names.items()}


def test_the_float_model_keeps_what_it_has(net, images, make_spec, norms, run_model):
    """Mean and variance of outputs are those that the folded norms say: nothing is to be done."""
    model, found = net(), {}
    flow = watch(model, lambda: model(images(4)[0]), inputs=images(4)[0])
    prepared = prepare(model, flow, make_plan(model, flow, make_spec()))
    assert prepared.norms.keys() == norms.keys()
    forwards = Forwards.of(model, images(4), run_model, seed=0)
    MomentsPass(prepared, forwards, dict.fromkeys(range(4), flow.calls), {}, Tape(), list(norms),
                lambda name, moments: found.update({name: moments})).run()
    for name, norm in prepared.norms.items():
        factor, shift = renormalization(*mean_and_variance(found[name]), norm)
        assert torch.allclose(factor, torch.ones_like(factor), atol=1e-4)
        assert torch.allclose(shift, torch.zeros_like(shift), atol=1e-4)


@pytest.mark.parametrize('momentum', [None, 0.1])
def test_outputs_are_those_of_norms_behind_the_layers(net, images, norms, momentum):
    """All images as one batch in training mode; or batch after batch, as the source has it."""
    plain, stage = net(), net()
    quantize_model(plain, images(4), WEIGHTS)
    report, = quantize_model(stage, images(4), dict(
        WEIGHTS, tuning=dict(STAGE, momentum=momentum))).tuning
    assert report['layers'] == 5 and report['left_alone'] == 2
    behind = {}
    for name, norm in norms.items():
        module = behind[name] = nn.BatchNorm2d(len(norm.beta), momentum=momentum or 1.0)
        gamma = (norm.gamma.square() + norm.eps).sqrt()
        for value, to in ((gamma, module.weight), (norm.beta, module.bias),
                          (norm.beta, module.running_mean), (norm.gamma.square(),
                                                             module.running_var)):
            to.data.copy_(value)
        plain.get_submodule(name).register_forward_hook(
            lambda layer, args, output, module=module: module(output))
    with torch.no_grad():
        if momentum is None:
            wanted = plain(torch.cat(images(4)))
        else:
            for batch in images(4):
                plain(batch)
            for module in behind.values():
                module.eval()
            wanted = plain(torch.cat(images(4)))
        found = stage(torch.cat(images(4)))
    for one, other in zip(wanted, found):
        assert torch.allclose(one, other, atol=1e-4)
    assert max(report['growth']) > 1.03  # there was something to do


@torch.no_grad()
def by_hand(prepared, batches, norms):
    """Layer after layer: all batches are run, the layer is changed, all are run again."""
    for name, norm in norms.items():
        layer, sums = prepared.layers[name], []
        layer.product = lambda x, layer=layer, sums=sums: (sums.append(output_moments(
            QuantizedLayer.product(layer, x), layer.geometry)), QuantizedLayer.product(layer, x))[1]
        for batch in batches:
            prepared.model(batch)
        del layer.product
        factor, shift = renormalization(*mean_and_variance(sum(sums)), norm)
        solution = layer.solution()
        scale = (solution.weight_scale.double() * factor).float()
        bias = (solution.bias.double() * factor + shift)
        if layer.qparams is not None and layer.qparams.unit:
            bias = whole_steps(bias, scale)
        layer.install(replace(solution, weight_scale=scale, bias=bias.float()))


@pytest.mark.parametrize('make, activation', [
    (lambda: nn.Sequential(nn.Conv2d(3, 6, 1), Block(6), nn.Conv2d(6, 2, 1)),
     dict(num_bits=3, placement='deploy', output_bits=3)), (Levels, dict(num_bits=None))])
def test_layers_come_one_after_another(seeded, images, make_spec, run_model, make, activation):
    """Outputs that are rounded, too; layers that are called several times an image."""
    spec = dict(weight=dict(num_bits=3), activation=activation, method=dict(type='MSE'))
    plain, _ = calibrate(settled(seeded(make), images(4)), images(4), make_spec(**spec),
                         run=run_model)
    norms = {layer: read_norm(settled(seeded(make), images(4)).get_submodule(norm))
             for norm, layer in plain.folded.items()}
    norms = {name: norms[name] for name in plain.layers if name in norms}
    stage, report = calibrate(settled(seeded(make), images(4)), images(4), make_spec(
        **spec, tuning=STAGE), run=run_model)
    assert report.tuning[0]['layers'] == len(norms) == 2
    before = copy.deepcopy(plain.layers)
    by_hand(plain, images(4), norms)
    for name, layer in stage.layers.items():
        assert torch.equal(layer.codes, before[name].codes)
        assert (layer.output_qparams is None) == (before[name].output_qparams is None)
        if layer.output_qparams is not None:
            assert torch.equal(layer.output_qparams.scale, before[name].output_qparams.scale)
        assert torch.allclose(layer.weight_scale, plain.layers[name].weight_scale, rtol=1e-5)
        assert (name in norms) != torch.equal(layer.weight_scale, before[name].weight_scale)
        assert torch.allclose(layer.product_bias, plain.layers[name].product_bias, atol=1e-5)


def test_a_model_that_is_off_is_repaired(net, images, monkeypatch):
    """All weights two thirds of what they are to be, biases therefore off in what follows."""
    real = RoundToNearest.round
    monkeypatch.setattr(RoundToNearest, 'round', lambda self, weight, num_bits: replace(
        (solved := real(self, weight, num_bits)), scale=solved.scale / 1.5))
    report, = quantize_model(model := net(), images(4), dict(
        weight=dict(num_bits=8), activation=dict(num_bits=None), method=dict(type='RoundToNearest'),
        overrides=[dict(match=name, skip=True) for name in ('classify', 'regress')],
        calibration=dict(holdout=0.25), tuning=dict(STAGE, guard=True))).tuning
    assert report['kept'] == 'tuned' and report['best_step'] == 5
    assert report['growth'] == pytest.approx([1.5, 1.5], rel=0.02)
    assert report['held_out_after'] < 1e-3 * report['held_out_before']
    with torch.no_grad():
        for found, wanted in zip(model(images(1)[0]), net()(images(1)[0])):
            assert torch.allclose(found, wanted, atol=0.05)


def test_what_is_no_better_leaves_all_bit_for_bit(residual_net, images, assert_same_state):
    """Here running statistics are drawn at random, and norms would put outputs elsewhere."""
    models = [residual_net() for _ in range(2)]
    spec = dict(WEIGHTS, activation=dict(num_bits=3, placement='residual'))
    quantize_model(models[0], images(4), spec)
    stage, = quantize_model(models[1], images(4), dict(
        spec, tuning=dict(type='NormReestimation'))).tuning
    assert stage['kept'] == 'start' and stage['held_out_tried'] > stage['held_out_before']
    assert_same_state(*models)


def test_without_norms_the_float_model_says_what_outputs_have(seeded, images):
    def make():
        return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3))

    with pytest.raises(ValueError, match=r"tuning\[0\]: Norm.* none was.*target='float'"):
        quantize_model(seeded(make), images(4), dict(WEIGHTS, tuning=STAGE))
    model = seeded(make)
    stage, = quantize_model(model, images(4), dict(
        WEIGHTS, tuning=dict(STAGE, target='float'))).tuning
    assert stage['left_alone'] == 0
    x, layers = torch.cat(images(4)), dict(quantized_layers(model))
    with torch.no_grad():
        for one, other in ((layers['0'](x), seeded(make)[0](x)), (model(x), seeded(make)(x))):
            assert torch.allclose(one.mean((0, 2, 3)), other.mean((0, 2, 3)), atol=1e-4)
            assert torch.allclose(one.std((0, 2, 3)), other.std((0, 2, 3)), rtol=1e-3)


def test_a_pipeline_without_a_budget_says_that_it_has_chosen_no_widths(net, images):
    with pytest.warns(UserWarning, match="'CalibTIPLight' has chosen no widths"):
        report = quantize_model(net(), images(4), dict(pipeline='CalibTIPLight'))
    assert [stage['type'] for stage in report.tuning] == ['NormReestimation']
    assert report.method == {'type': 'RoundToNearest'}
