"""Scale searches are chosen by what they do to a layer's output, on positions not looked at."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import build_method, read_request
from mmbitsplit.functional import ActivationSamples, apply_layer, per_input
from mmbitsplit.models import QuantizedLayer, layer_geometry, quantized_layers
from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.input_scales import (
    SEARCHES,
    STRENGTHS,
    choose_candidate,
    choose_input,
    input_candidates,
)
from mmbitsplit.solving.positions import LayerPositions
from mmbitsplit.structures import ActivationSpec, LayerPlan, WeightSpec

ACTIVATIONS = {'silu': F.silu, 'gelu': F.gelu, 'hardswish': F.hardswish,
               'leaky_relu': lambda x: F.leaky_relu(x, 0.1)}


def make_layer(groups=1):
    torch.manual_seed(0)
    module = nn.Conv2d(8, 16, 1, groups=groups)
    return QuantizedLayer(layer_geometry(module), module.weight, module.bias)


def make_capture(layer, x, batch):
    """x (8, K): what a sampler would have taken of a 1x1 convolution's input."""
    geometry = layer.geometry
    patches = x.view(geometry.groups, -1, x.shape[1])
    return CallCapture(patches=patches, samples=x, low=x.amin(1), high=x.amax(1),
                       held_out=torch.zeros(x.shape[1], dtype=torch.bool),
                       shape=(1, 8, 1, x.shape[1]), batch=batch)


def choose(x, bits, mode='per_tensor', weight_bits=8, samples=None, groups=1, **activation):
    """The candidate taken of a layer whose inputs are (8, K)."""
    layer = make_layer(groups)
    captures = [make_capture(layer, part.contiguous(), batch)
                for batch, part in enumerate(x.split(x.shape[1] // 4, 1))]
    targets = [layer.float_rows() @ capture.patches for capture in captures]
    plan = LayerPlan('layer', WeightSpec(weight_bits), ActivationSpec(bits, mode=mode,
                                                                      **activation))
    samples = samples or ActivationSamples(x, x.amin(1), x.amax(1))
    candidates = input_candidates(samples, plan.activation)
    positions = LayerPositions(captures, targets, Team(), layer.float_rows())
    chosen = choose_candidate(candidates, positions, layer, plan,
                              build_method({'type': 'BitSplit'}))
    return chosen, candidates


def heavy(size=4096, seed=0):
    """Mostly small, with rare large values."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, size, generator=generator).relu()
    x[:, ::512] *= 12
    return x


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
def test_few_bits_clip_and_many_do_not(mode):
    """At 3 bits the rare large values cost the others too much; at 8 they cost nothing."""
    assert choose(heavy(), 3, mode)[0].search == 'mse'
    assert choose(heavy(), 8, mode)[0].search == 'minmax'


def test_what_the_samples_did_not_show_counts():
    """The search fits clipping to samples without a large value; the positions have them."""
    x = heavy()
    small = x.clamp(max=3)[:, :256]
    samples = ActivationSamples(small, x.amin(1), x.amax(1))
    found, candidates = choose(x, 6, samples=samples)
    assert found.search == 'minmax'
    assert float(candidates[1].qparams.scale) < 0.5 * float(candidates[0].qparams.scale)


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_the_choice_has_no_more_error_than_the_first_search(mode, bits):
    """By brute force on the float layer, strength for strength."""
    x = F.silu(3 * heavy() - 2)
    found, candidates = choose(x, bits, mode)
    layer = make_layer()

    def error(candidate):
        rounded = candidate.inputs(x.unsqueeze(0), layer.geometry).double()
        if candidate.qparams.unit:
            rounded *= per_input(candidate.qparams.scale, layer.geometry).unsqueeze(-1)
        apart = layer.float_rows().double() @ (rounded - x.double())
        return float((apart - apart.mean(-1, keepdim=True)).square().sum())

    rival, = (one for one in candidates
              if one.strength == found.strength and one.search != found.search)
    assert error(found) <= error(rival) / (0.9 if found.search == 'minmax' else 1.0)


def test_candidates_are_every_search_and_strength():
    x = heavy()
    found = {(one.search, one.strength) for one in choose(x, 4, 'ecaq')[1]}
    assert found == {(search, strength) for search in SEARCHES for strength in STRENGTHS}
    only = choose(x, 4, 'ecaq', scale_search='minmax', strength=0.3)
    assert [(one.search, one.strength) for one in only[1]] == [('minmax', 0.3)]


@pytest.mark.parametrize('groups', [1, 2])
def test_lowest_integers_are_those_of_each_input(groups):
    x = F.silu(torch.randn(8, 4096, generator=torch.Generator().manual_seed(0))
               * torch.logspace(-1, 2, 8).unsqueeze(1))
    found, _ = choose(x, 8, 'ecaq', strength=1.0, groups=groups)
    layer = make_layer(groups)
    lowest = found.lowest(layer.geometry)
    inputs = found.inputs(x.view(groups, -1, x.shape[1]), layer.geometry)
    assert lowest.shape == (groups, 8 // groups, 1)
    assert len(lowest.unique()) > 2
    assert (inputs >= lowest).all() and (inputs <= lowest + 255).all()
    assert (inputs.amin(-1, keepdim=True) == lowest).float().mean() > 0.5


@pytest.mark.parametrize(('method', 'search'), [
    ('BitSplit', 'auto'), ('PublishedBitSplit', 'mse'), ('ErrorFeedback', 'mse'), ('MSE', 'mse'),
    ('RoundToNearest', 'minmax'), ('KLDivergence', 'kl'), ('ACIQ', 'aciq_laplace'),
    ('ACIQMix', 'aciq_laplace'), ('LAPQ', 'lp')])
def test_published_methods_keep_the_search_of_their_papers(method, search):
    pytest.importorskip('scipy')
    spec = read_request({'method': {'type': method}, 'activation': {'num_bits': 4}})
    assert spec.activation.scale_search == search


class Net(nn.Module):
    """Plain, depthwise, pointwise, strided and linear layers behind one activation function."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 12, 1, bias=False)
        self.grouped = nn.Conv2d(12, 8, (3, 5), 2, padding=(1, 2), groups=2)
        self.linear, self.last = nn.Linear(8, 10), nn.Linear(10, 4)
        with torch.no_grad():  # channels of very different reach, as after a trained batch norm
            for layer in (self.first, self.depthwise, self.point, self.grouped):
                layer.weight *= 3 * torch.logspace(-1, 1.2, len(layer.weight)).view(-1, 1, 1, 1)

    def forward(self, x):
        for layer in (self.first, self.depthwise, self.point, self.grouped):
            x = self.activation(layer(x))
        return self.last(self.activation(self.linear(x.mean((2, 3)))))


def quantized_net(name, **activation):
    net = Net(ACTIVATIONS[name]).eval()
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(4, 3, 12, 12, generator=generator) for _ in range(4)]
    report = quantize_model(net, batches, dict(
        weight=dict(num_bits=8), activation=activation, calibration=dict(rows_per_layer=1024)))
    return net, batches, report


@pytest.mark.parametrize('name', ACTIVATIONS)
@pytest.mark.parametrize('strength', ['auto', 1.0])
def test_layers_with_a_zero_point_a_channel_compute_the_sum_over_real_inputs(name, strength):
    """In double precision: sums of w (q - z) s over channels, with float zeros at borders."""
    net, batches, report = quantized_net(name, strength=strength)
    points = {layer: module.qparams.zero_point for layer, module in quantized_layers(net)
              if module.qparams is not None}
    assert any(len(values.unique()) > 1 for values in points.values())
    seen = []
    for _, module in quantized_layers(net):
        module.register_forward_hook(lambda module, args, out: seen.append((module, args[0], out)))
    with torch.no_grad():
        net(batches[0])
    for module, x, out in seen:
        geometry, qparams = module.geometry, module.qparams
        weight, bias = module.product_weight.double(), module.product_bias
        bias = None if bias is None else bias.double()
        if qparams is not None:
            shape = [1] * x.dim()
            shape[-1 if geometry.kind == 'linear' else 1] = -1
            scale, point = (values.double().view(shape).expand(shape) for values in (
                qparams.scale, qparams.zero_point))
            codes = (x.double() / scale).round().add(point).clamp(qparams.quant_min,
                                                                  qparams.quant_max)
            x = (codes - point) * scale
            columns = per_input(qparams.scale.double(), geometry)  # (G, N)
            weight = (weight.view(geometry.groups, -1, columns.shape[1])
                      / columns.unsqueeze(1)).view_as(weight)
        expected = apply_layer(x.double(), weight, bias, geometry)
        apart = (out.double() - expected).abs().max() / expected.abs().max()
        assert apart < 2e-2 if qparams is not None else apart < 1e-6
        if qparams is not None:  # all but inputs that lie between two codes
            close = (out.double() - expected).abs() <= 1e-4 * expected.abs().max()
            assert close.double().mean() > 0.97
    assert {layer.scale_search for layer in report.layers} <= {None, 'mse', 'minmax'}
    assert any(layer.scale_search for layer in report.layers)


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_zero_points_a_channel_bring_ecaq_to_what_per_channel_gives(name):
    """With one for all ECAQ's error was several times as large."""
    errors = {}
    for mode in ('ecaq', 'per_channel'):
        net, _, _ = quantized_net(name, mode=mode, scale_search='minmax')
        x = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            wanted, found = Net(ACTIVATIONS[name]).eval()(x), net(x)
        errors[mode] = float((found - wanted).square().sum() / (wanted - wanted.mean()).square()
                             .sum())
    assert errors['ecaq'] < 2 * errors['per_channel'] + 1e-5


def waking():
    """Eight batches (8, K): seven channels are small but in the last one."""
    x = torch.rand(8, 8, 1024, generator=torch.Generator().manual_seed(0))
    x[:7, 1:] /= 64
    return x


@pytest.mark.parametrize('search, cautious', [('auto', True), ('minmax', False)])
def test_strengths_are_compared_on_batches_that_their_scales_did_not_see(search, cautious):
    """Channels that some batches wake: scales of their own clip them on others."""
    layer = make_layer()
    captures = [make_capture(layer, part, batch) for batch, part in enumerate(waking())]
    targets = [layer.float_rows() @ capture.patches for capture in captures]
    plan = LayerPlan('layer', WeightSpec(8), ActivationSpec(8, scale_search=search))
    rows = LayerPositions(captures, targets, Team(), layer.float_rows())
    chosen, samples = choose_input(captures, rows, layer, plan, build_method({'type': 'BitSplit'}))
    assert (chosen.strength < 1) == cautious
    assert torch.equal(samples.high, torch.stack([one.high for one in captures]).amax(0))
    again = [one for one in input_candidates(samples, plan.activation)
             if (one.strength, one.search) == (chosen.strength, chosen.search)]
    assert torch.equal(chosen.qparams.scale, again[0].qparams.scale)  # found on all of them
