"""Few inputs are multiplied in one compiled call: the same sums, whatever came before."""

import copy
import pickle

import pytest
import torch
from integer_layers import INPUTS, assert_close, assert_same, layer_of
from integer_oracle import exact

from mmbitsplit.models import to_integer
from mmbitsplit.models.layers import integer_weight
from mmbitsplit.models.layers.integer_packing import PATIENCE
from mmbitsplit.models.layers.integer_rows import FEW, takes_rows
from mmbitsplit.models.layers.integer_support import why_no_integers
from mmbitsplit.structures import LayerGeometry

pytestmark = pytest.mark.skipif(why_no_integers() is not None, reason='torch without bytes')

GEOMETRIES = {'linear': LayerGeometry('linear', 8, 17), 'conv2d': LayerGeometry('conv2d', 8, 16)}


def few_and_many(x):
    """Inputs of the same layer; of the second one there are too many."""
    if x.dim() == 3:
        return x, x.repeat(1, FEW // x.numel(), 1)
    return x[..., :1, :1], x.repeat(1, 1, FEW // x.numel(), 1)


@pytest.fixture
def no_other(monkeypatch):
    """Operators of oneDNN are an error."""
    def forbid():
        for name in ('integer_linear', 'integer_conv'):
            monkeypatch.setattr(integer_weight, name, None)
    return forbid


@pytest.mark.parametrize('inputs', INPUTS)
@pytest.mark.parametrize('kind', GEOMETRIES)
def test_few_inputs(kind, inputs, no_other):
    layer, x = layer_of(GEOMETRIES[kind], INPUTS[inputs])
    expected, codes = exact(layer, x), layer.codes.clone()
    to_integer(layer, channels_last=True)
    last = x if kind == 'linear' else x.contiguous(memory_format=torch.channels_last)
    assert_same(layer, last, expected)
    no_other()
    y = layer(last)
    assert_close(y, expected)
    assert y.is_contiguous() if kind == 'linear' else y.is_contiguous(
        memory_format=torch.channels_last)
    assert torch.equal(layer.codes, codes) and layer.weight_quantizer.nbytes < 5 * codes.numel()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.codes, codes)
    to_integer(layer, False)
    assert torch.equal(layer.codes, codes)


def test_one_place_of_a_map_is_in_both_orders(no_other):
    layer, x = layer_of(GEOMETRIES['conv2d'], INPUTS['asymmetric'])
    x = x[..., :1, :1]
    before = layer(x)
    to_integer(layer)
    for _ in range(PATIENCE):
        layer(x)
    no_other()
    assert layer(x).stride() == before.stride()
    assert_close(layer(x), before)


@pytest.mark.parametrize('kind', GEOMETRIES)
def test_few_and_many_by_turns(kind):
    layer, x = layer_of(GEOMETRIES[kind], INPUTS['signed'])
    inputs = [(one, exact(layer, one)) for one in few_and_many(x)]
    to_integer(layer)
    for which in (0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0):
        assert_close(layer(inputs[which][0]), inputs[which][1])


def test_the_largest_sums_are_whole():
    layer, _ = layer_of(LayerGeometry('linear', 500, 2), ([1.0], [0], 0, 255, True), 7, bias=False)
    quantizer = layer.weight_quantizer
    quantizer.codes.copy_(torch.tensor([[63], [-64]]).expand(2, 500))
    quantizer.scale.fill_(1)
    quantizer.refresh()
    to_integer(layer)
    for _ in range(PATIENCE + 1):
        y = layer(torch.full((1, 500), 300.0))
        assert torch.equal(y, torch.tensor([[255.0 * 63 * 500, -255.0 * 64 * 500]]))


def test_what_is_no_number():
    layer, x = layer_of(GEOMETRIES['linear'], INPUTS['ecaq'])
    x[0, 1, 2] = float('nan')
    x[1, 1, 2] = float('inf')
    before = layer(x)
    to_integer(layer)
    for _ in range(PATIENCE + 1):
        y = layer(x)
        assert torch.equal(y.isnan(), before.isnan())
        assert_close(y[1], before[1])


@pytest.mark.parametrize('other', [
    dict(kernel_size=(3, 3)), dict(stride=(2, 2)), dict(padding=(1, 1)), dict(groups=2),
    dict(pre_padding=(1, 0, 0, 0)), dict(auto_padding='same_upper')])
def test_other_convolutions_take_windows(other):
    assert takes_rows(LayerGeometry('conv2d', 8, 8))
    assert not takes_rows(LayerGeometry('conv2d', 8, 8, **other))
