"""One layer of several widths: what each computes, gives back, learns and keeps in memory."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmbitsplit.models import layer_geometry
from tests.helpers.switched_nets import WIDTHS, Net, at, layer_with, solution_of


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


def test_a_weight_that_somebody_reads_is_not_written_over():
    layer = Net().conv
    held, place = layer.product_weight, layer.product_weight.data_ptr()
    before = held.clone()
    layer.use(4)
    assert torch.equal(held, before) and layer.product_weight.data_ptr() != place
    place = layer.product_weight.data_ptr()
    layer.use(3)
    assert layer.product_weight.data_ptr() == place  # nobody read it: no new memory


def test_gradients_are_of_the_weight_of_the_forward_or_refused():
    layer = Net().conv
    x = torch.rand(2, 3, 9, 9, requires_grad=True)
    expected, = torch.autograd.grad(layer.product(x).sum(), x)
    y = layer.product(x)
    layer.use(4)
    try:
        found, = torch.autograd.grad(y.sum(), x)
    except RuntimeError as error:  # torch may say whose memory is still needed, or not
        assert 'inplace' in str(error)
    else:
        assert torch.equal(found, expected)
