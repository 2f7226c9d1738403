"""Scales and biases of layers as one vector: its gradient, and what is written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.functional.quantizers.integer_bias import whole_steps
from mmbitsplit.models import quantized_layers
from mmbitsplit.models.layers.float_weights import FloatWeights
from mmbitsplit.solving.tuning import LearnedValues
from mmbitsplit.solving.tuning.learned_values import CODE_STEP

ALL = ('scales', 'biases', 'input_scales')


def inputs(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(64, 6, generator=generator).abs() for _ in range(count)]


def layer_of(seeded, *, bits=4, bias=True, symmetry='auto', **activation):
    """A quantized linear layer with inner widths."""
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5, bias=bias)))
    quantize_model(model, inputs(), dict(
        weight=dict(num_bits=bits), activation=dict(num_bits=3, symmetry=symmetry, **activation),
        first_last=dict(weight_bits=None, activation_bits=3),
        method=dict(type='BitSplit', bias_correction=False, effort='fast')))
    return model, dict(quantized_layers(model))['2']


def values_of(layer, learns=ALL):
    spread = torch.linspace(0.5, 2, layer.geometry.out_channels, dtype=torch.float64)
    return LearnedValues({'it': layer}, learns, {'it': spread})


def formula(layer, start, point, x, learns):
    """What the layer computes at a point, in double, gradients straight through."""
    sizes = [5 if 'scales' in learns else 0,
             layer.qparams.scale.numel() if 'input_scales' in learns else 0,
             5 if 'biases' in learns else 0]
    of_weight, of_input, of_bias = point.split(sizes)
    scale, bias, step = (start[name].double() for name in ('scale', 'bias', 'input'))
    factor = of_weight.exp() if len(of_weight) else torch.ones(5)
    if len(of_input):
        step = step * of_input.exp()
        factor = factor * (of_input.mean().exp() if layer.qparams.unit else 1.0)
    zero = layer.qparams.zero_point.double()
    low, high = (bound.double() - zero for bound in layer.qparams.limits())
    place = (x.double() / step).clamp(low, high)
    codes = place + (place.round() - place).detach()
    entering = codes if layer.qparams.unit else codes * step
    weight = layer.codes.double() * (scale * factor).unsqueeze(1)
    if len(of_bias):
        bias = bias + torch.linspace(0.5, 2, 5, dtype=torch.float64) * of_bias
    if layer.qparams.unit:
        bias = bias + (whole_steps(bias.detach(), (scale * factor).detach()) - bias).detach()
    return F.linear(entering, weight, bias)


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
@pytest.mark.parametrize('learns', [ALL, ('scales',), ('input_scales',), ('biases',),
                                    ('scales', 'input_scales')])
def test_gradients_are_those_of_the_formula(seeded, mode, learns):
    _, layer = layer_of(seeded, mode=mode)
    values, x = values_of(layer, learns), inputs(1, seed=3)[0]
    start = {name: value.clone() for name, value in values.parts[0].start.items()}
    point = 0.05 * torch.randn(values.size, dtype=torch.float64,
                               generator=torch.Generator().manual_seed(1))
    point.requires_grad_()
    wanted = formula(layer, start, point, x, learns)
    mix = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    expected, = torch.autograd.grad((wanted * mix).sum(), point)
    values.write(point.detach())
    with values.recorded() as leaves:
        output = layer(x)
        assert torch.allclose(output.double(), wanted, atol=1e-4)
        found = torch.autograd.grad((output * mix).sum(), leaves)
    gradient = values.gradient(found)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert bool((gradient != 0).all())  # every number is reached
    assert not any(leaf.requires_grad for leaf in leaves)


def test_the_zero_point_gives_back_every_bit_and_what_is_learned_is_in_files(seeded):
    model, layer = layer_of(seeded, mode='ecaq')
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, values = inputs(1)[0], values_of(layer)
    with torch.no_grad():
        output = layer(x)
        values.write(torch.full((values.size,), 0.1, dtype=torch.float64))
        moved = layer(x)
        assert not torch.equal(moved, output)
        assert torch.equal(before['2.codes'], model.state_dict()['2.codes'])
        steps = layer.product_bias.double() / layer.weight_scale.double()
        assert torch.allclose(steps, steps.round(), atol=1e-3)  # integer kernels add it exactly
        values.write(torch.zeros(values.size, dtype=torch.float64))
        assert torch.equal(layer(x), output)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize('moved', [False, True])
def test_a_layer_without_a_bias_keeps_none_where_none_was_learned(seeded, moved):
    model, layer = layer_of(seeded, mode='per_channel', bias=False)
    before = set(model.state_dict())
    values = values_of(layer, ('biases',))
    values.write(torch.full((values.size,), 0.1 if moved else 0.0, dtype=torch.float64))
    values.end()
    assert set(model.state_dict()) - before == ({'2.bias'} if moved else set())


def test_an_input_scale_moves_what_is_clipped_and_not_how_large_the_output_is(seeded):
    """One step more or less: the product of weight and input stays what it is in real units."""
    _, layer = layer_of(seeded, mode='per_tensor', bits=8)
    values, x = values_of(layer, ('input_scales',)), 0.2 * inputs(1)[0]
    with torch.no_grad():
        output = layer(x) - layer.product_bias
        values.write(torch.full((1,), 0.05, dtype=torch.float64))
        moved = layer(x) - layer.product_bias
    assert float(moved.norm() / output.norm()) == pytest.approx(1, abs=0.05)


def layer_in_calibration(seeded, **options):
    """As ``layer_of``, its float weight still there."""
    before = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)))[2]
    _, layer = layer_of(seeded, **options)
    layer._kept = FloatWeights(before.weight, before.bias)
    return layer


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
def test_gradients_of_codes_are_those_of_a_loose_quantizer(seeded, mode):
    """Two ways: from the gradient of the weight as a whole, and by autograd through rounding."""
    layer = layer_in_calibration(seeded, mode=mode)
    values, x = values_of(layer, ('scales', 'codes')), inputs(1, seed=3)[0]
    mix = torch.randn(64, 5, generator=torch.Generator().manual_seed(2))
    with values.recorded() as leaves:
        gradient = values.gradient(torch.autograd.grad((layer(x) * mix).sum(), leaves))
    position, quantizer = values.parts[0].position, layer.weight_quantizer
    quantizer.loosen(position, steps=CODE_STEP, everywhere=True)
    quantizer.learn(scale='log')
    learned = quantizer.learned()
    expected = torch.autograd.grad((layer(x) * mix).sum(), [learned['scale'], learned['codes']])
    inside = (position.abs() < quantizer_end(layer) + 0.5).flatten()
    assert inside.sum() > 20
    assert torch.allclose(gradient[:5], expected[0].double(), rtol=1e-4)
    assert torch.allclose(gradient[5:][inside], expected[1].double().flatten()[inside], rtol=1e-4,
                          atol=1e-6)


def quantizer_end(layer):
    return 2 ** (layer.num_bits - 1) - 1


def test_codes_move_by_whole_steps_within_the_range_and_come_back(seeded):
    layer = layer_in_calibration(seeded, mode='ecaq', bits=3)
    codes, values = layer.codes.clone(), values_of(layer, ('codes',))
    values.write(torch.full((values.size,), 2 / CODE_STEP, dtype=torch.float64))
    assert torch.equal(layer.codes, (codes + 2).clamp(max=3)) and layer.codes.dtype == torch.int8
    assert values.changed_codes() == int((codes < 3).sum())
    values.write(torch.zeros(values.size, dtype=torch.float64))
    assert torch.equal(layer.codes, codes) and values.changed_codes() == 0
    # No further than half a step from its code, where the float weight is farther.
    assert float((values.parts[0].position - codes).abs().max()) < 0.5


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel'])
def test_gradients_of_zero_points_are_those_of_the_formula(seeded, mode):
    """Both ends of the range move with it; what lies inside means what it did."""
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5)))
    quantize_model(model, [x - 0.5 for x in inputs()], dict(
        weight=dict(num_bits=8), activation=dict(num_bits=3, symmetry='asymmetric', mode=mode),
        first_last=dict(weight_bits=None, activation_bits=3), method=dict(type='MSE')))
    layer = dict(quantized_layers(model))['1']
    values, x = values_of(layer, ('zero_points',)), 2 * inputs(1, seed=3)[0] - 1.5
    qparams, whole = layer.qparams, layer.input_quantizer.zero_point.clone()
    zero = whole.double().requires_grad_()
    step, place = qparams.scale.double(), x.double() / qparams.scale.double()
    clipped = torch.minimum(torch.maximum(place, -zero), 7 - zero)
    codes = clipped + (clipped.round() - clipped).detach()
    weight = layer.codes.double() * layer.weight_scale.double().unsqueeze(1)
    wanted = F.linear(codes if qparams.unit else codes * step, weight, layer.product_bias.double())
    mix = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    expected, = torch.autograd.grad((wanted * mix).sum(), zero)
    with values.recorded() as leaves:
        output = layer(x)
        gradient = values.gradient(torch.autograd.grad((output * mix).sum(), leaves))
    assert torch.allclose(output.double(), wanted, atol=1e-4)
    assert values.size == whole.numel() and bool((expected != 0).all())
    assert torch.allclose(gradient, 7 * expected, rtol=1e-3, atol=1e-4)  # of 7 steps of the range
    values.write(torch.full((values.size,), 1 / 7, dtype=torch.float64))
    moved = layer.input_quantizer.zero_point
    assert torch.equal(moved, (whole + 1).clamp(max=7)) and moved.dtype == whole.dtype
    values.write(torch.zeros(values.size, dtype=torch.float64))
    assert torch.equal(layer.input_quantizer.zero_point, whole)


def test_a_range_of_one_sign_has_no_zero_point_to_learn(seeded):
    _, layer = layer_of(seeded, mode='per_tensor')
    assert values_of(layer, ('zero_points',)).size == 0
