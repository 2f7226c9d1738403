"""Several widths of a whole model: asked for, refused, switched to and back."""

import copy
import io
import json
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmbitsplit.models import (
    LayerBits,
    LayerWidths,
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
    use_stream,
)
from mmbitsplit.models.surgery.undo import as_it_was_on_error
from tests.helpers.switched_nets import Net, image, layer_with, solution_of


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


def test_streams_are_left_whole(net):
    leave_stream(net.act)
    assert 'act' not in widths_of(net) and not list(net.act.buffers())
    assert not [name for name in vars(net.act) if 'stream' in name]


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
