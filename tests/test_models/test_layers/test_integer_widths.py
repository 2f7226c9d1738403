"""Layers of several widths that multiply bytes give at each what they give in float."""

import copy
import itertools
import pickle
from dataclasses import replace

import pytest
import torch
from width_solutions import CONV, several

from mmbitsplit.functional import apply_layer, narrower_qparams, product_input
from mmbitsplit.models import QuantizedLayer, to_integer
from mmbitsplit.models.layers.integer_packing import PATIENCE
from mmbitsplit.models.layers.integer_support import why_no_integers
from mmbitsplit.structures import LayerGeometry, QParams

pytestmark = pytest.mark.skipif(why_no_integers() is not None, reason='torch without bytes')

WIDTHS, INPUTS = (2, 3, 6, 7, 8), (4, 8)
LINEAR = LayerGeometry('linear', 6, 9)


def layer_of(geometry=CONV, widths=WIDTHS, nesting='floor', inputs=INPUTS, unit=True):
    """A layer, and an input that leaves the range of its codes at both ends."""
    solution = several(geometry, widths, nesting)
    scales = 0.02 * (1 + torch.arange(6)) if unit else torch.tensor([0.05])
    widest = QParams(scales, torch.tensor([90]), 0, 255, unit=unit)
    narrower = tuple(narrower_qparams(widest, 12.0, bits) for bits in inputs[:-1])
    layer = QuantizedLayer(geometry, torch.zeros(geometry.weight_shape),
                           torch.zeros(geometry.out_channels))
    layer.install(replace(solution, qparams=widest, narrower_inputs=narrower))
    layer.release_float()
    size = (2, 5, 6) if geometry.kind == 'linear' else (2, 6, 9, 11)
    x = 12 * torch.randn(size, generator=torch.Generator().manual_seed(3)) + 2
    return layer.eval(), x


def exact(layer, x):
    """The output in double precision."""
    inputs = layer.input_quantizer
    codes = product_input(x, inputs.qparams, inputs.channel_dim).double()
    return apply_layer(codes, layer.product_weight.double(), layer.product_bias.double(),
                       layer.geometry)


def assert_close(y, expected):
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('nesting', ['floor', 'planes', None])
@pytest.mark.parametrize('geometry, unit', [(CONV, True), (CONV, False), (LINEAR, True)])
def test_each_width_is_that_of_float(geometry, unit, nesting):
    layer, x = layer_of(geometry, nesting=nesting, unit=unit)
    other = copy.deepcopy(layer)
    to_integer(layer, 'auto')
    assert layer.integers
    for weight, inputs in itertools.chain(itertools.product(WIDTHS, INPUTS), [(8, 4), (3, 8)]):
        layer.use(weight, inputs)
        other.use(weight, inputs)
        expected = exact(other, x)
        for _ in range(PATIENCE + 1):
            assert_close(layer(x), expected)
        assert_close(layer.weight_quantizer.product(x), expected)
        assert torch.equal(layer.weight, other.weight) and torch.equal(layer.codes, other.codes)
        assert torch.equal(layer.weight_scale, other.weight_scale)


def test_half_a_step_costs_no_product_below_eight_bits():
    layer, x = layer_of()
    to_integer(layer, 'auto')
    for bits in (2, 3, 6):
        layer.use(bits)
        integer = layer.weight_quantizer.integer
        assert integer._sums is None
        assert torch.equal(integer.codes, layer.codes)
    layer.use(8, 4)
    assert layer.weight_quantizer.integer._sums is not None


def test_back_again_states_and_copies():
    layer, x = layer_of()
    layer.use(3, 8)
    before, state = layer(x), layer.state_dict()
    to_integer(layer)
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in state.items())
    with pytest.raises(ValueError, match='to_integer'):
        layer.load_state_dict(state)
    with pytest.raises(ValueError, match='to_integer'):
        layer.double()
    with pytest.raises(ValueError, match='5'):
        layer.use(5)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other.use(6, 4)
        other.use(3, 8)
        assert other.integers and torch.equal(other(x), layer(x))
    layer.use(6, 4)
    to_integer(layer, False)
    assert not layer.integers
    layer.use(3, 8)
    assert torch.equal(layer(x), before)


def test_two_bytes_a_weight():
    layer, x = layer_of(LayerGeometry('conv2d', 6, 512, kernel_size=(16, 16)))
    to_integer(layer, 'auto')
    for bits in WIDTHS[:-2]:
        layer.use(bits)
        quantizer = layer.weight_quantizer
        held = {value.data_ptr(): value.nbytes for value in (*quantizer.kept.buffers(),)}
        assert sum(held.values()) <= 1.1 * layer.codes.numel()  # of the widest alone
        assert quantizer.nbytes <= 2.2 * layer.codes.numel()


def test_inputs_alone_have_several_widths():
    layer, x = layer_of(widths=(6,))
    other = copy.deepcopy(layer)
    to_integer(layer)
    for inputs in (4, 8, 4):
        layer.use(input=inputs)
        other.use(input=inputs)
        assert_close(layer.weight_quantizer.product(x), exact(other, x))
