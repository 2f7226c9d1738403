"""Quantizers while they learn: what they compute, their gradients, and what is left in the end."""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from mmbitsplit.functional import (
    apply_layer,
    channel_dim,
    code_range,
    fake_quantize,
    per_input,
    per_output,
    rows_to_weight,
    weight_rows,
)
from mmbitsplit.models import QuantizedLayer, layer_geometry
from mmbitsplit.models.layers.quantizers import ActivationQuantizer, WeightQuantizer
from mmbitsplit.models.layers.quantizers.learned_values import LEAST_GROWTH
from mmbitsplit.structures import LayerSolution, QParams

LAYERS = {
    'conv': lambda: nn.Conv2d(6, 4, 3, 2, 1),
    'depthwise': lambda: nn.Conv2d(6, 6, 3, groups=6),
    'transposed_grouped': lambda: nn.ConvTranspose2d(6, 4, 3, 2, groups=2),
    'linear': lambda: nn.Linear(6, 4),
}
INPUTS = {'per_tensor': (1, True), 'per_channel': (6, False), 'ecaq': (6, True)}


@pytest.fixture(params=LAYERS)
def geometry(request):
    return layer_geometry(LAYERS[request.param]())


def make_layer(geometry, mode='per_tensor', bias=True, offset=False, num_bits=3):
    generator = torch.Generator().manual_seed(3)
    low, high = code_range(num_bits, signed=True, narrow_range=True)
    count, unit = INPUTS[mode]
    outputs = geometry.out_channels
    layer = QuantizedLayer(geometry, torch.zeros(geometry.weight_shape), None)
    layer.install(LayerSolution(
        codes=torch.randint(low, high + 1, geometry.weight_shape,
                            generator=generator).to(torch.int8),
        num_bits=num_bits, weight_scale=torch.rand(outputs, generator=generator) + 0.2,
        bias=torch.randn(outputs, generator=generator) if bias else None,
        weight_offset=torch.randn(outputs, generator=generator) if offset else None,
        qparams=QParams(torch.rand(count, generator=generator) * 0.2 + 0.1,
                        torch.randint(2, 6, (count,), generator=generator).float(), 0, 15,
                        unit=unit)))
    return layer


def make_x(geometry, seed=0):
    """Large enough for the compiled loops."""
    shape = (3000, 6) if geometry.kind == 'linear' else (20, 6, 17, 17)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(codes, reach=0.6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return codes + (torch.rand(codes.shape, generator=generator) * 2 - 1) * reach


def learn_all(layer, form='log', **loose):
    """Everything there is to learn; the parameters of both quantizers."""
    weights, inputs = layer.weight_quantizer, layer.input_quantizer
    weights.loosen(near(layer.codes), **loose)
    weights.learn(scale=form, offset=True, bias=True)
    inputs.learn(scale=form, zero_point=True, carrier=weights)
    return {f'{side}.{name}': value for side, one in (('weight', weights), ('input', inputs))
            for name, value in one.learned().items()}


def descend(layer, learned, x, rate, steps=5):
    """A few steps of Adam toward zero outputs."""
    adam = torch.optim.Adam(learned.values(), lr=rate)
    for _ in range(steps):
        adam.zero_grad()
        layer(x).square().mean().backward()
        assert all(value.grad.abs().max() > 0 for value in learned.values())
        adam.step()


@pytest.mark.parametrize('form', ['log', 'raw'])
@pytest.mark.parametrize('mode', INPUTS)
@pytest.mark.parametrize('bias', [True, False])
def test_no_step_changes_no_bit(geometry, mode, form, bias):
    layer, x = make_layer(geometry, mode, bias), make_x(geometry)
    before, output = layer.solution(), layer(x)
    learned = learn_all(layer, form, follow=True)
    assert set(learned) == {'weight.codes', 'weight.scale', 'weight.offset', 'weight.bias',
                            'input.scale', 'input.zero_point'}
    if bias:  # zeros that are added may turn -0 into 0
        assert torch.equal(layer(x), output)
    for after in (layer.solution(), (layer.weight_quantizer.harden(),
                                     layer.input_quantizer.harden(), layer.solution())[-1]):
        assert torch.equal(after.codes, before.codes) and after.codes.dtype == torch.int8
        assert torch.equal(after.weight_scale, before.weight_scale)
        assert after.weight_offset is None and (after.bias is None) == (not bias)
        assert torch.equal(after.qparams.scale, before.qparams.scale)
        assert torch.equal(after.qparams.zero_point, before.qparams.zero_point)
    assert torch.equal(layer(x), output) and not list(
        value for value in layer.parameters() if value.requires_grad)


@pytest.mark.parametrize('mode', INPUTS)
@pytest.mark.parametrize('input_first', [False, True])
def test_what_is_learned_ends_as_a_plain_quantizer_that_computes_the_same(geometry, mode,
                                                                          input_first):
    layer, x = make_layer(geometry, mode), make_x(geometry)
    learned = learn_all(layer, 'log', follow=True, everywhere=True)
    descend(layer, learned, x, 0.05)
    with torch.no_grad():
        learned['input.zero_point'].add_(0.7)
        output, taken = layer(x), layer.solution()
    quantizers = [layer.weight_quantizer, layer.input_quantizer]
    for quantizer in reversed(quantizers) if input_first else quantizers:
        quantizer.harden()
        assert torch.equal(layer(x), output)  # whatever is hard by now
    other = make_layer(geometry, mode, offset=True)
    for apart in (taken, layer.solution()):
        assert apart.codes.dtype == torch.int8 and not apart.weight_scale.requires_grad
        assert torch.equal(apart.qparams.zero_point, apart.qparams.zero_point.round())
        other.install(apart)
        assert torch.equal(other(x), output)
    model, copy = nn.Sequential(layer), nn.Sequential(make_layer(geometry, mode, offset=True))
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(x), output)


@pytest.mark.parametrize('everywhere', [False, True])
def test_loose_codes_are_rounded_positions_with_their_gradients(geometry, everywhere):
    quantizer = make_layer(geometry).weight_quantizer
    low, high = code_range(3, signed=True, narrow_range=True)
    codes, position = quantizer.codes.clone(), near(quantizer.codes, 2.0)
    steps = torch.rand(geometry.weight_shape) + 0.5
    quantizer.loosen(position, steps=steps, everywhere=everywhere)
    assert torch.equal(quantizer.soft_codes(), codes.float())
    moves = quantizer.learned()['codes']
    with torch.no_grad():
        moves.copy_(torch.randn(moves.shape, generator=torch.Generator().manual_seed(2)) * 2)
    # Where it may begin: within half a step, beyond only where the code is the last.
    start = codes + (position - codes).clamp(-0.4999, 0.4999)
    start = torch.where((codes == high) & (position > high) | (codes == low) & (position < low),
                        position, start)
    place = start + moves.detach() * steps
    torch.testing.assert_close(quantizer.soft_codes().detach(), place.round().clamp(low, high))
    grad = torch.randn(moves.shape)
    quantizer.weight().backward(grad)
    passed = grad * per_output(quantizer.scale, geometry) * steps
    inside = (place >= low) & (place <= high)
    torch.testing.assert_close(moves.grad, passed if everywhere else torch.where(inside, passed, 0))
    assert 0 < inside.float().mean() < 1
    hard = quantizer.harden()
    assert torch.equal(hard, place.round().clamp(low, high).to(torch.int8))


def test_weights_that_stay_have_the_gradients_of_a_learned_range(geometry):
    """``follow``: codes are those of a real weight, as in LSQ, the offset beside."""
    layer = make_layer(geometry, offset=True)
    quantizer = layer.weight_quantizer
    start, scale, offset = near(layer.codes, 0.4), layer.weight_scale, layer.weight_offset
    quantizer.loosen(start, follow=True)
    quantizer.learn(scale='raw', offset=True)
    learned = quantizer.learned()
    with torch.no_grad():
        learned['scale'].mul_(1.3)
        learned['offset'].add_(0.2)
    grad = torch.randn(geometry.weight_shape)
    found = quantizer.weight()
    found.backward(grad)
    weight = start * per_output(scale, geometry) + per_output(offset, geometry)
    weight, s, o = (value.detach().requires_grad_() for value in (
        weight, learned['scale'], learned['offset']))
    place = ((weight - per_output(o, geometry)) / per_output(s, geometry)).clamp(-3, 3)
    codes = place + (place.round() - place).detach()
    expected = codes * per_output(s, geometry) + per_output(o, geometry)
    expected.backward(grad)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(codes.detach(), layer.codes.float())  # some have moved with the scale
    torch.testing.assert_close(learned['scale'].grad, s.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(learned['offset'].grad, o.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(learned['codes'].grad / per_output(scale, geometry), weight.grad,
                               rtol=1e-4, atol=1e-5)


def real_layer(layer, x, scale, zero_point):
    """The layer in real numbers: quantized input times dequantized weight, in plain torch."""
    geometry, quantizer = layer.geometry, layer.weight_quantizer
    rows = weight_rows(quantizer.codes.float(), geometry)
    rows = rows * quantizer.scale.detach().view(rows.shape[0], rows.shape[1], 1)
    start = layer.input_quantizer.learning['scale'].start
    if layer.input_quantizer.unit:
        rows = rows / per_input(start, geometry).unsqueeze(1)
    shape = [1] * x.dim()
    shape[channel_dim(geometry)] = -1
    place = torch.minimum(torch.maximum(x / scale.view(shape), -zero_point.view(shape)),
                          15 - zero_point.view(shape))
    rounded = (place + (place.round() - place).detach()) * scale.view(shape)
    return apply_layer(rounded, rows_to_weight(rows, geometry), quantizer.bias, geometry)


@pytest.mark.parametrize('mode', INPUTS)
def test_an_input_scale_is_learned_beside_a_weight_that_stays(geometry, mode):
    """Where weights carry it, too: the gradient is that of the round trip in real numbers."""
    layer, x = make_layer(geometry, mode), make_x(geometry)
    layer.input_quantizer.learn('log', zero_point=True, carrier=layer.weight_quantizer)
    learned = layer.input_quantizer.learned()
    with torch.no_grad():
        learned['scale'].add_(0.1)
    start = layer.input_quantizer.learning['scale'].start
    growth = torch.full_like(learned['scale'].detach(), 0.1).requires_grad_()
    zero_point = layer.qparams.zero_point.detach().clone().requires_grad_()
    output, expected = layer(x), real_layer(layer, x, start * growth.exp(), zero_point)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    for one in (output, expected):
        one.square().sum().backward()
    torch.testing.assert_close(learned['scale'].grad, growth.grad, rtol=1e-3, atol=1e-1)
    torch.testing.assert_close(learned['zero_point'].grad, zero_point.grad, rtol=1e-3, atol=1e-1)
    assert learned['scale'].numel() == (1 if INPUTS[mode][1] else 6)


def test_without_a_carrier_codes_of_the_weight_stay():
    layer = make_layer(layer_geometry(nn.Linear(6, 4)))
    layer.input_quantizer.learn('log')
    with torch.no_grad():
        layer.input_quantizer.learned()['scale'].add_(0.1)
    scale = layer.weight_scale.clone()
    layer.input_quantizer.harden()
    assert torch.equal(layer.weight_scale, scale)


def test_a_logarithm_has_the_gradient_times_the_scale(geometry):
    grads = {}
    for form in ('log', 'raw'):
        layer, x = make_layer(geometry), make_x(geometry)
        layer.weight_quantizer.learn(scale=form)
        layer.input_quantizer.learn(scale=form)
        layer(x).square().sum().backward()
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            grad = quantizer.learned()['scale'].grad
            grads.setdefault(form, []).append(
                grad if form == 'log' else grad * quantizer.learning['scale'].start)
    for one, other in zip(grads['log'], grads['raw']):
        assert one.abs().min() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_a_scale_stays_positive_and_comes_back():
    quantizer = ActivationQuantizer(QParams(torch.tensor([0.5]), torch.zeros(1), 0, 7), 1)
    quantizer.learn('raw')
    scale = quantizer.learned()['scale']
    with torch.no_grad():
        scale.fill_(-3.0)
    assert quantizer.scale.tolist() == pytest.approx([0.5 * LEAST_GROWTH])
    (quantizer.scale * 2.0).sum().backward()
    assert float(scale.grad) == 2.0
    with torch.no_grad():
        scale.fill_(0.25)
    assert quantizer.scale.tolist() == [0.25]


def test_a_zero_point_is_whole_and_within_the_codes():
    quantizer = ActivationQuantizer(QParams(torch.tensor([0.5]), torch.tensor([3.0]), 0, 15), 1)
    quantizer.learn(zero_point=True)
    place = quantizer.learned()['zero_point']
    for value, wanted in ((3.4, 3), (3.6, 4), (-2.0, 0), (99.0, 15)):
        with torch.no_grad():
            place.fill_(value)
        assert quantizer.zero_point.tolist() == [wanted]
        assert quantizer.solution().zero_point.tolist() == [wanted]
        place.grad = None
        quantizer(torch.tensor([[9.0]])).sum().backward()  # clipped: it may come back
        assert float(place.grad) == -1.0
    quantizer.harden()
    assert quantizer.zero_point.dtype == torch.int32 and quantizer.zero_point.tolist() == [15]


def test_the_factor_of_lsq_is_on_the_gradient_alone(geometry):
    grads, outputs = [], []
    for factor in (False, True):
        layer, x = make_layer(geometry), make_x(geometry)
        layer.input_quantizer.learn('raw', gradient_factor=factor,
                                    carrier=layer.weight_quantizer)
        outputs.append(layer(x))
        outputs[-1].square().sum().backward()
        grads.append(layer.input_quantizer.learned()['scale'].grad)
    assert torch.equal(*outputs)
    torch.testing.assert_close(grads[1], grads[0] * (x.numel() * 15) ** -0.5, rtol=1e-4, atol=0)


@pytest.mark.parametrize('side', ['weight_quantizer', 'input_quantizer'])
def test_a_form_that_is_not_known_is_named(side):
    layer = make_layer(layer_geometry(nn.Linear(6, 4)))
    with pytest.raises(ValueError, match="scale='exp' is not supported.*'log'.*'raw'"):
        getattr(layer, side).learn(scale='exp')


@pytest.mark.parametrize('side', ['weight_quantizer', 'input_quantizer'])
def test_a_state_dict_wants_nothing_that_is_being_learned(side):
    layer = make_layer(layer_geometry(nn.Linear(6, 4)))
    getattr(layer, side).learn(scale='log')
    with pytest.raises(ValueError, match=rf"'0' has .* being learned; call {side}\.harden"):
        nn.Sequential(layer).state_dict()


@pytest.mark.parametrize('mode', INPUTS)
def test_unquantized_elements_keep_the_product_right(geometry, mode):
    layer, x = make_layer(geometry, mode), make_x(geometry)
    quantizer, dim = layer.input_quantizer, channel_dim(geometry)
    rounded = fake_quantize(x, layer.qparams, dim)

    def dropped(probability, seed=0):
        with quantizer.dropping(probability, torch.Generator().manual_seed(seed)):
            return quantizer(x), layer(x)

    assert torch.equal(dropped(0.0)[1], layer(x))  # all quantized, to the last bit
    shape = [1] * x.dim()
    shape[dim] = -1
    in_real = layer.qparams.scale.view(shape) if quantizer.unit else 1.0
    torch.testing.assert_close(dropped(1.0)[0] * in_real, x)
    some, output = dropped(0.5)
    close = [torch.isclose(some * in_real, one, rtol=1e-5, atol=1e-6) for one in (x, rounded)]
    assert bool((close[0] | close[1]).all()) and all(
        0.4 < float(one.float().mean()) < 0.7 for one in close)
    with quantizer.dropping(0.5, torch.Generator().manual_seed(0)):
        quantizer(x)
        again = layer(x)
    assert torch.equal(output, again)
    assert not torch.equal(output, dropped(0.5, 1)[1])


def test_unquantized_elements_pass_their_gradient(geometry):
    """Beyond the range, too, and nothing of it reaches the scale."""
    layer, x = make_layer(geometry), make_x(geometry).mul_(9).requires_grad_()
    layer.input_quantizer.learn('log', carrier=layer.weight_quantizer)
    scale = layer.input_quantizer.learned()['scale']
    wanted = {}
    for probability in (0.0, 1.0):
        with layer.input_quantizer.dropping(probability, torch.Generator()):
            output = layer(x)
        wanted[probability] = torch.autograd.grad(output.sum(), (x, scale))
    assert wanted[0.0][0].count_nonzero() < 0.5 * wanted[1.0][0].count_nonzero()
    assert float(wanted[1.0][1].abs()) < 1e-3 * float(wanted[0.0][1].abs())


def test_nothing_is_left_of_a_drop_whatever_happens():
    layers = [make_layer(layer_geometry(nn.Linear(6, 4))) for _ in range(2)]
    x = make_x(layers[0].geometry)
    before = [layer(x) for layer in layers]
    with pytest.raises(KeyError), ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.input_quantizer.dropping(0.5, torch.Generator()))
        with layers[0].input_quantizer.dropping(0.0, torch.Generator()):
            assert torch.equal(layers[0](x), before[0])
        assert not any(torch.equal(layer(x), one) for layer, one in zip(layers, before))
        raise KeyError
    assert all(torch.equal(layer(x), one) for layer, one in zip(layers, before))


def test_learning_what_is_soft_goes_on_from_there(geometry):
    """From the neighbour's choice to free codes and back: whole codes of what was."""
    quantizer = make_layer(geometry).weight_quantizer
    codes = quantizer.codes.clone()
    quantizer.soften(codes + 0.3)
    with torch.no_grad():
        quantizer.rounding.fill_(1.0)
    risen = (codes + 1).clamp(max=3)
    assert torch.equal(quantizer.hard_codes(), risen)
    quantizer.loosen(risen.float())
    assert quantizer.rounding is None and torch.equal(quantizer.hard_codes(), risen)
    quantizer.soften(risen.float())
    assert quantizer.loose is None and torch.equal(quantizer.harden(), risen)


def test_a_copy_learns_by_itself():
    layer = make_layer(layer_geometry(nn.Linear(6, 4)))
    x = make_x(layer.geometry)
    learn_all(layer)
    output, copied = layer(x), copy.deepcopy(layer)
    with torch.no_grad():
        copied.input_quantizer.learned()['scale'].add_(0.1)
        assert torch.equal(layer(x), output)
        scale = copied.solution().weight_scale
    torch.testing.assert_close(scale, layer.solution().weight_scale * torch.tensor(0.1).exp())
    assert isinstance(copied.weight_quantizer, WeightQuantizer)
