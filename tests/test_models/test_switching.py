"""Several widths of a whole model: asked for, refused, switched to and back."""

import copy
import io
import json
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmbitsplit.functional import (
    midrise_codes,
    midrise_offset,
    narrower_codes,
    narrower_qparams,
)
from mmbitsplit.models import (
    LayerBits,
    LayerWidths,
    QuantizedLayer,
    bits_of,
    layer_geometry,
    set_bits,
    set_plan,
    widths_of,
)
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.streams import (
    blank_stream,
    describe_stream,
    leave_stream,
    round_stream,
    use_stream,
)
from mmbitsplit.models.surgery.undo import as_it_was_on_error
from mmbitsplit.structures import LayerSolution, ProductSolution, QParams

WIDTHS = (2, 3, 4, 6, 8)


def qparams_of(num_bits, scale=0.02, size=1, unit=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = scale * (1 + torch.rand(size, generator=generator))
    zero = torch.full((size,), 100)
    base = QParams(scales, zero, 0, 255, unit=unit)
    return base if num_bits == 8 else narrower_qparams(base, 0.9 * 2 ** (8 - num_bits), num_bits)


def solution_of(geometry, nesting, seed=0, unit=True, size=1):
    """All widths of a layer; a narrower one has its own scale and bias."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(geometry.weight_shape, generator=generator)
    one = torch.ones(geometry.out_channels)
    codes, parts = midrise_codes(weight, torch.tensor(0.03), 8), {}
    if nesting != 'floor':
        codes = codes.clamp(min=-127)
    for num_bits in WIDTHS:
        scale = 0.03 * 2.0 ** (8 - num_bits) * one * (1 + num_bits / 50)
        parts[num_bits] = LayerSolution(
            codes=narrower_codes(codes, 8, num_bits, nesting), num_bits=num_bits,
            weight_scale=scale, bias=num_bits * one, qparams=None,
            weight_offset=midrise_offset(scale) if nesting == 'floor' else None, nesting=nesting)
    return replace(
        parts[8], narrower=tuple(parts[width] for width in (6, 4, 3, 2)),
        qparams=qparams_of(8, size=size, unit=unit),
        narrower_inputs=tuple(qparams_of(width, size=size, unit=unit) for width in (6, 4, 3, 2)),
        output_qparams=qparams_of(8, 0.1, unit=False),
        narrower_outputs=(qparams_of(4, 0.1, unit=False),))


def at(solution, weight, inputs, output):
    """The solution of one width alone, as a layer that was solved for it would have it."""
    one = next(each for each in (solution, *solution.narrower) if each.num_bits == weight)
    sides = [next(each for each in found if each.num_bits == width) for found, width in (
        ((solution.qparams, *solution.narrower_inputs), inputs),
        ((solution.output_qparams, *solution.narrower_outputs), output))]
    factor = 1.0
    if solution.qparams.unit:
        factor = float(sides[0].scale[0].double() / solution.qparams.scale[0].double())
    offset = one.weight_offset
    return LayerSolution(
        codes=one.codes, num_bits=weight, weight_scale=one.weight_scale * factor, bias=one.bias,
        qparams=sides[0], output_qparams=sides[1], nesting=solution.nesting,
        weight_offset=None if offset is None else offset * factor)


def layer_with(module, solution=None):
    geometry = layer_geometry(module)
    layer = QuantizedLayer(geometry, module.weight, module.bias)
    if solution is not None:
        layer.install(solution)
    return layer.eval()


class Net(nn.Module):
    """Two layers with several widths, one of one width, a product and a stream."""

    def __init__(self, nesting='floor'):
        super().__init__()
        torch.manual_seed(0)
        conv, second, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
        self.conv = layer_with(conv, solution_of(layer_geometry(conv), nesting, 1))
        self.act = nn.ReLU()
        self.second = layer_with(second, solution_of(layer_geometry(second), nesting, 2, size=4))
        self.product = Product()
        wide, narrow = qparams_of(8, 0.05), qparams_of(4, 0.05)
        self.product.install(ProductSolution(wide, wide, narrower_a=(narrow,),
                                             narrower_b=(narrow,)))
        self.last = layer_with(last, replace(
            at(solution_of(layer_geometry(last), nesting, 3), 8, 8, 8),
            qparams=qparams_of(8, 8.0), output_qparams=qparams_of(8, 0.5, unit=False)))
        round_stream(self.act, qparams_of(8, 0.04, unit=False),
                     (qparams_of(4, 0.04, unit=False),))

    def forward(self, x):
        y = self.second(self.act(self.conv(x))).flatten(2)
        return self.last(self.product(y, y.transpose(1, 2)))


def image(seed=0):
    return torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net():
    """All that a model may have, without widths that some of it lacks."""
    made = Net().eval()
    for name in ('conv', 'second'):
        layer = getattr(made, name)
        whole = layer.solution()
        layer.install(replace(whole, narrower=tuple(
            one for one in whole.narrower if one.num_bits == 4), narrower_inputs=tuple(
            one for one in whole.narrower_inputs if one.num_bits == 4)))
    return made


@pytest.mark.parametrize('nesting', ['planes', 'floor'])
@pytest.mark.parametrize('module', [nn.Conv2d(6, 4, 3), nn.Linear(6, 4),
                                    nn.ConvTranspose2d(6, 4, 3, groups=2)])
@settings(max_examples=20, deadline=None)
@given(weight=st.sampled_from(WIDTHS), inputs=st.sampled_from(WIDTHS),
       output=st.sampled_from((4, 8)), unit=st.booleans(), size=st.sampled_from((1, 6)))
def test_a_width_is_the_layer_solved_at_that_width(nesting, module, weight, inputs, output, unit,
                                                   size):
    geometry = layer_geometry(module)
    solution = solution_of(geometry, nesting, unit=unit, size=size)
    layer = layer_with(module, solution)
    alone = layer_with(module, at(solution, weight, inputs, output))
    x = torch.rand((2, 6, 5, 5) if geometry.kind != 'linear' else (2, 6))
    before = layer(x)
    layer.use(weight, inputs, output)
    assert torch.equal(layer(x), alone(x)) and torch.equal(layer.weight, alone.weight)
    assert torch.equal(layer.codes, alone.codes) and layer.num_bits == weight
    assert torch.equal(layer.weight_scale, alone.weight_scale)
    layer.use(8, 8, 8)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize('nesting', ['planes', 'floor'])
def test_a_layer_gives_its_solution_back_whatever_is_in_use(nesting):
    module = nn.Conv2d(6, 4, 3)
    solution = solution_of(layer_geometry(module), nesting)
    layer = layer_with(module, replace(solution, narrower=tuple(
        replace(one, codes=None) for one in solution.narrower)))
    for widths in ((8, 8, 8), (3, 2, 4), (2, 8, 4)):
        layer.use(*widths)
        check_equal(layer.solution(), solution)
    assert layer.weight_quantizer.nested == {2, 3, 4, 6}


def check_equal(one, other):
    assert (one.num_bits, one.nesting) == (other.num_bits, other.nesting)
    for name in ('codes', 'weight_scale', 'weight_offset', 'bias'):
        value, expected = getattr(one, name), getattr(other, name)
        assert value is expected is None or torch.equal(value, expected)
    for pair in zip((one.qparams, *one.narrower_inputs, one.output_qparams, *one.narrower_outputs),
                    (other.qparams, *other.narrower_inputs, other.output_qparams,
                     *other.narrower_outputs), strict=True):
        if pair[0] is not None or pair[1] is not None:
            assert pair[0].num_bits == pair[1].num_bits and pair[0].unit == pair[1].unit
            assert torch.equal(pair[0].scale, pair[1].scale)
            assert torch.equal(pair[0].zero_point, pair[1].zero_point.to(pair[0].zero_point))
    for pair in zip(one.narrower, other.narrower, strict=True):
        check_equal(*pair)


def test_what_there_is_and_what_is_in_use(net):
    assert widths_of(net) == {
        'conv': LayerWidths(weight=(4, 8), input=(4, 8), output=(4, 8)),
        'second': LayerWidths(weight=(4, 8), input=(4, 8), output=(4, 8)),
        'last': LayerWidths(weight=(8,), input=(8,), output=(8,)),
        'product': LayerWidths(a=(4, 8), b=(4, 8)), 'act': LayerWidths(stream=(4, 8))}
    set_bits(net, weight=4, activation=8)
    assert bits_of(net)['conv'] == LayerBits(weight=4, input=8, output=8)
    set_bits(net, 4)
    assert bits_of(net) == {
        'conv': LayerBits(4, 4, 4), 'second': LayerBits(4, 4, 4), 'last': LayerBits(8, 8, 8),
        'product': LayerBits(a=4, b=4), 'act': LayerBits(stream=4)}
    assert net.second.weight_quantizer.made_for == net.second.input_factor > 10
    set_bits(net, activation=8)
    assert bits_of(net)['second'] == LayerBits(4, 8, 8)


def test_switching_back_is_exact_and_every_part_switches(net):
    x, outputs = image(), {}
    parts = {'wide': {}, 'weights': dict(weight=4), 'inputs': dict(activation=4)}
    for name, sides in parts.items():
        set_bits(net, 8)
        if sides:
            set_bits(net, **sides)
        outputs[name] = net(x)
    assert not torch.equal(outputs['wide'], outputs['weights'])
    for name in ('product', 'act'):
        set_bits(net, 8)
        set_plan(net, {'layers': [], **({'products': [
            {'name': 'product', 'a_bits': 4, 'b_bits': 8}]} if name == 'product' else {
                'streams': [{'name': 'act', 'num_bits': 4}]})})
        assert not torch.equal(net(x), outputs['wide'])
    set_bits(net, 8)
    assert torch.equal(net(x), outputs['wide'])


def test_a_plan_says_all_widths_and_leaves_the_rest_at_the_widest(net, tmp_path):
    rows = [{'name': 'conv', 'weight_bits': 4, 'input_bits': 8, 'output_bits': 4}]
    path = tmp_path / 'plan.json'
    path.write_text(json.dumps({'format': 1, 'layers': rows}))
    set_bits(net, 4)
    set_plan(net, path)
    assert bits_of(net) == {
        'conv': LayerBits(4, 8, 4), 'second': LayerBits(8, 8, 8), 'last': LayerBits(8, 8, 8),
        'product': LayerBits(a=8, b=8), 'act': LayerBits(stream=8)}


@pytest.mark.parametrize(('plan', 'message'), [
    ({'layers': [{'name': 'conv', 'weight_bits': 5}]}, "weight of 'conv' has 4, 8 bits.*says 5"),
    ({'layers': [{'name': 'conv', 'weight_bits': None}]}, "'conv' has 4, 8 bits.*in float"),
    ({'layers': [{'name': 'last', 'input_bits': 4}]}, "input of 'last' has 8 bits"),
    ({'layers': [{'name': 'convs', 'weight_bits': 4}]}, "'convs'.*'conv'"),
    ({'layers': [], 'streams': [{'name': 'conv', 'num_bits': 4}]}, "stream of 'conv' 4.*float"),
    ({'layers': [{'name': 'conv', 'weight_bits': 4}],
      'products': [{'name': 'product', 'a_bits': 4, 'b_bits': 3}]}, "b of 'product' has 4, 8")])
def test_a_plan_that_does_not_fit_changes_nothing(net, plan, message):
    before = bits_of(net)
    with pytest.raises(ValueError, match=message):
        set_plan(net, plan)
    assert bits_of(net) == before


def test_widths_that_are_not_there_are_named(net):
    before = bits_of(net)
    with pytest.raises(ValueError, match=r"weight=3 is none.*'conv' \(4, 8 bits\).*'second'"):
        set_bits(net, 3)
    with pytest.raises(ValueError, match='activation=6 is none of the activation widths'):
        set_bits(net, weight=4, activation=6)
    with pytest.raises(ValueError, match='set_bits needs a width'):
        set_bits(net)
    assert bits_of(net) == before
    alone = nn.Sequential(net.last)
    with pytest.raises(ValueError, match='no weight of this model has several.*8 bits'):
        set_bits(alone, 4)
    set_bits(alone, 8)


def test_inputs_of_one_width_stay_as_they_are():
    module = nn.Linear(6, 4)
    solution = replace(solution_of(layer_geometry(module), 'floor'), narrower_inputs=(),
                       narrower_outputs=())
    model = nn.Sequential(layer_with(module, solution))
    set_bits(model, 3)
    assert bits_of(model)['0'] == LayerBits(weight=3, input=8, output=8)
    with pytest.raises(ValueError, match='activation=4 cannot'):
        set_bits(model, 3, activation=4)


@pytest.mark.parametrize('how', ['deepcopy', 'pickle', 'to'])
def test_copies_switch_by_themselves(net, how):
    x = image()
    wide = net(x)
    set_bits(net, 4)
    narrow = net(x)
    if how == 'deepcopy':
        copied = copy.deepcopy(net)
    elif how == 'pickle':
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    else:
        copied = copy.deepcopy(net).to(torch.float64).to(torch.float32)
    assert torch.equal(copied(x), narrow)
    set_bits(copied, 8)
    assert torch.equal(copied(x), wide) and torch.equal(net(x), narrow)
    for layer in (copied.conv, copied.second):  # what is made of the widest is not kept
        assert layer.weight_quantizer.nested == {4}
        assert layer.weight_quantizer.quantizers['4'].codes is None


def test_two_models_of_two_widths_in_two_threads():
    x, expected, models = image(), {}, {}
    for num_bits in (4, 8):
        models[num_bits] = Net().eval()
        set_bits(models[num_bits], weight=num_bits)
        expected[num_bits] = models[num_bits](x)
    wrong = []

    def run(num_bits):
        for _ in range(20):
            for width in (3, 8, num_bits):
                set_bits(models[num_bits], weight=width)
            if not torch.equal(models[num_bits](x), expected[num_bits]):
                wrong.append(num_bits)

    threads = [threading.Thread(target=run, args=(num_bits,)) for num_bits in (4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_real_weight_is_in_memory_whatever_the_widths():
    layer = Net().conv
    for num_bits in (2, 8, 3):
        layer.use(num_bits)
        real = [value for value in layer.buffers() if value.shape == layer.codes.shape
                and value.is_floating_point()]
        whole = [value for value in layer.buffers() if value.dtype == torch.int8]
        assert len(real) == 1 and len(whole) == (1 if num_bits == 8 else 2)


def test_a_learned_input_scale_moves_its_width_alone():
    module = nn.Linear(6, 4)
    solution = solution_of(layer_geometry(module), 'floor', size=6)
    layer, x = layer_with(module, solution), torch.rand(3, 6)
    wide = layer(x)
    layer.use(4, 4)
    before = layer(x)
    layer.input_quantizer.learn('log', carrier=layer.weight_quantizer)
    assert torch.equal(layer(x), before)
    parameter = layer.input_quantizer.learned()['scale']
    layer.product(x).sum().backward()
    assert parameter.grad.abs().max() > 0
    with torch.no_grad():
        parameter += 0.1
    soft = layer(x).detach()
    layer.weight_quantizer.harden()
    layer.input_quantizer.harden()
    assert torch.equal(layer(x), soft) and not torch.equal(soft, before)
    layer.use(8, 8)
    assert torch.equal(layer(x), wide)
    found = layer_with(module, layer.solution())
    found.use(4, 4)
    assert torch.equal(found(x), soft)


def test_a_learned_widest_scale_leaves_the_others():
    module = nn.Linear(6, 4)
    layer, x = layer_with(module, solution_of(layer_geometry(module), 'floor')), torch.rand(3, 6)
    layer.use(4, 4)
    narrow = layer(x)
    layer.use(8, 8)
    layer.input_quantizer.learn('raw', carrier=layer.weight_quantizer)
    with torch.no_grad():
        layer.input_quantizer.learned()['scale'] *= 1.25
    layer.input_quantizer.harden()
    wide = layer(x)
    found = layer_with(module, layer.solution())
    for widths, expected in (((8, 8), wide), ((4, 4), narrow)):
        layer.use(*widths)
        assert torch.equal(layer(x), expected)
        found.use(*widths)
        torch.testing.assert_close(found(x), expected, rtol=1e-5, atol=1e-5)


def test_streams_are_left_whole(net):
    leave_stream(net.act)
    assert 'act' not in widths_of(net) and not list(net.act.buffers())
    assert not [name for name in vars(net.act) if 'stream' in name]


def test_a_weight_that_somebody_reads_is_not_written_over():
    layer = Net().conv
    held, place = layer.product_weight, layer.product_weight.data_ptr()
    before = held.clone()
    layer.use(4)
    assert torch.equal(held, before) and layer.product_weight.data_ptr() != place
    place = layer.product_weight.data_ptr()
    layer.use(3)
    assert layer.product_weight.data_ptr() == place  # nobody read it: no new memory


def test_streams_and_products_are_described_and_loaded_with_all_widths(net):
    x = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))
    act, product = nn.ReLU(), Product()
    blank_stream(act, **describe_stream(net.act))
    product.expect(json.loads(json.dumps(net.product.plan_row())))
    act.load_state_dict(net.act.state_dict())
    product.load_state_dict(net.product.state_dict())
    for num_bits in (4, 8):
        for module in (act, net.act):
            use_stream(module, num_bits)
        for module in (product, net.product):
            module.use(num_bits, 8)
        assert torch.equal(act(x), net.act(x))
        assert torch.equal(product(x, x.transpose(1, 2)), net.product(x, x.transpose(1, 2)))


def test_an_error_puts_widths_back(net):
    x, before = image(), bits_of(net)
    expected = net(x)
    with pytest.raises(RuntimeError), as_it_was_on_error(net):
        set_bits(net, 4)
        net(x)
        raise RuntimeError
    assert bits_of(net) == before and torch.equal(net(x), expected)
    set_bits(net, 4)
    set_bits(net, 8)
    assert torch.equal(net(x), expected)
