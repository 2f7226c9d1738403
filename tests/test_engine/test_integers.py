"""A loaded model and an evaluation multiply bytes where they are asked to, and say so."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from width_solutions import CONV, several

from mmbitsplit.calibration import calibrate
from mmbitsplit.engine import QuantizedModel
from mmbitsplit.engine.run import integers
from mmbitsplit.engine.run.integers import IntegerUse, evaluated_with_integers
from mmbitsplit.models import QuantizedLayer, describe, quantized_layers, set_bits
from mmbitsplit.models.layers.integer_support import why_no_integers, why_no_products
from mmbitsplit.models.layers.product import Product
from mmbitsplit.structures import QParams, QuantSpec
from mmbitsplit.structures.products import ProductSolution

pytestmark = pytest.mark.skipif(why_no_integers() is not None, reason='torch without bytes')


@pytest.fixture(scope='module')
def wrapped(toy_model):
    """A quantized model as it is loaded, with an input."""
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    prepared, _ = calibrate(toy_model(), [x], QuantSpec.from_dict(dict(
        weight=dict(num_bits=4), first_last=dict(weight_bits=4, activation_bits=8))),
        run=lambda model, batch: model(batch))
    wrapper = QuantizedModel(prepared.model).eval()
    wrapper.note_description(describe(prepared))
    return wrapper, x


def test_integers_begin_with_the_first_call(wrapped, toy_model):
    wrapper, x = copy.deepcopy(wrapped)
    with torch.no_grad():
        expected = wrapper(x)
        fresh = QuantizedModel(toy_model(seed=5), integer='auto').eval()
        assert not fresh.integers.layers
        fresh.load_state_dict(wrapper.state_dict())
        assert (fresh(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert fresh.integers.layers
    fresh.use_integers(False)
    with torch.no_grad():
        assert torch.equal(fresh(x), expected)
    with pytest.raises(ValueError, match='integer=2'):
        QuantizedModel(toy_model(), integer=2)


def test_an_evaluation_leaves_the_model_as_it_was(wrapped, monkeypatch):
    (wrapper, _), step = copy.deepcopy(wrapped), 'a step'
    model = wrapper.model
    model.test_step = lambda data: (step, [layer.integers for _, layer in quantized_layers(model)])
    before = [layer.weight_quantizer for _, layer in quantized_layers(model)]
    monkeypatch.setattr(integers, 'may_be_channels_last', lambda model: True)
    with evaluated_with_integers(model, 'auto') as use:
        found = model.test_step(None)[1]
        assert all(layer.channels_last for _, layer in quantized_layers(model))
    assert not any(layer.channels_last for _, layer in quantized_layers(model))
    assert found[1:] == [True] * (len(before) - 1)  # the first reads the image in float
    assert use.to_dict()['layers'] == sum(found) and len(use.left) == len(before) - sum(found)
    assert all(layer.weight_quantizer is one
               for (_, layer), one in zip(quantized_layers(model), before))
    with evaluated_with_integers(nn.Linear(1, 1), False) as use:
        assert use.to_dict()['layers'] == 0


def test_an_evaluation_of_several_widths():
    def unit(qparams):
        return replace(qparams, unit=True)

    solution, x = several(), torch.rand(1, 6, 9, 9)
    layer = QuantizedLayer(CONV, torch.zeros(CONV.weight_shape), None)
    layer.install(replace(solution, qparams=unit(solution.qparams),
                          narrower_inputs=tuple(map(unit, solution.narrower_inputs))))
    net = nn.Sequential(layer.eval())
    net.test_step = net.forward
    set_bits(net, weight=3, activation=8)
    expected, before = net(x), layer.weight_quantizer
    with evaluated_with_integers(net, 'auto') as use:
        assert layer.integers
        set_bits(net, weight=5)
        assert net.test_step(x).isfinite().all()
        set_bits(net, weight=3)
        assert (net.test_step(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert use.layers == ['0']
    assert layer.weight_quantizer is before and before.active.hard_weight is not None
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize('may', [False, True])
def test_a_model_that_views_maps(wrapped, may, monkeypatch):
    monkeypatch.setattr(integers, 'may_be_channels_last', lambda model: may)
    (wrapper, x), orders = copy.deepcopy(wrapped), []
    with torch.no_grad():
        expected = wrapper(x)

    def view(module, args, y):
        orders.append(y.is_contiguous())
        y.view(-1)

    conv = next(layer for _, layer in quantized_layers(wrapper)
                if layer.geometry.kind == 'conv2d' and layer.input_quantizer is not None)
    conv.register_forward_hook(view)
    wrapper.use_integers(True)
    with torch.no_grad():
        assert (wrapper(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert conv.integers and orders == [False] * may + [True]


def test_the_default_multiplies_bytes_where_torch_does(monkeypatch):
    for why in (None, 'no bytes here'):
        monkeypatch.setattr(integers, 'why_no_integers', lambda found=why: found)
        assert integers.default_mode() == ('auto' if why is None else False)


@pytest.mark.parametrize('asked', ['auto', True])
def test_a_model_that_integers_fail_in(wrapped, asked):
    def refuse(module, args, y):
        if module.integers:
            raise RuntimeError('no bytes\nhere')

    wrapper, x = copy.deepcopy(wrapped)
    next(layer for _, layer in quantized_layers(wrapper)
         if layer.input_quantizer is not None).register_forward_hook(refuse)
    wrapper.use_integers(asked)
    with torch.no_grad():
        if asked == 'auto':
            wrapper(x)
            assert not wrapper.integers.layers and 'no bytes' in wrapper.integers.left.values()
        else:
            with pytest.raises(RuntimeError, match='no bytes'):
                wrapper(x)


@pytest.mark.skipif(why_no_products() is not None, reason=str(why_no_products()))
def test_products_say_when_they_were_too_small():
    product, use = Product(), IntegerUse('auto')
    grid = QParams(torch.tensor([0.1]), torch.tensor([0]), -128, 127, unit=True)
    product.install(ProductSolution(grid, grid))
    use.start(product)
    with evaluated_with_integers(product, False):
        assert use.layers == ['']
    for size, left in ((8, True), (64, False), (8, False)):
        use.call(product, product, torch.rand(size, size), torch.rand(size, size))
        assert ('8x8x8' in use.left.get('', '')) == left and use.layers == [''] * (not left)
