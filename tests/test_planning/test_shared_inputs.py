"""Which layers share the width of their input: what reads one tensor, or a quantized stream."""

import pytest
from torch import nn

from mmbitsplit.planning import make_plan
from mmbitsplit.planning.shared_inputs import shared_inputs
from mmbitsplit.structures import QuantSpec


@pytest.fixture
def net(make_net):
    """A block with a downsampling layer beside its first, then an attention's three layers."""
    def run(net, x):
        x = net.stem(x).relu()
        x = (net.conv(x).relu() + net.down(x)).relu()
        q, k, v = (part(x) for part in (net.query, net.key, net.value))
        return net.head(q * k + v)
    layers = {name: nn.Conv2d(4, 4, 1) for name in ('conv', 'down', 'query', 'key', 'value')}
    return make_net(run, stem=nn.Conv2d(3, 4, 3), **layers, head=nn.Conv2d(4, 2, 1))


def groups(net, see, image, every, **activation):
    flow = see(net, image)
    plan = make_plan(net, flow, QuantSpec.from_dict({'activation': activation}))
    return {frozenset(group) for group in shared_inputs(plan, flow, every)}


def test_layers_that_read_one_tensor_share_it_if_asked(net, see, image):
    assert groups(net, see, image, False) == set()
    assert groups(net, see, image, True) == {
        frozenset({'conv', 'down'}), frozenset({'query', 'key', 'value'})}


def test_layers_that_stay_float_share_with_nobody(net, see, image):
    flow = see(net, image)
    plan = make_plan(net, flow, QuantSpec.from_dict({
        'overrides': [{'match': name, 'skip': True} for name in ('down', 'key')]}))
    assert shared_inputs(plan, flow, True) == [frozenset({'query', 'value'})]


def test_readers_of_a_quantized_stream_share_it_in_any_case(make_net, see, image):
    def run(net, x):
        x = net.act(net.stem(x))
        return net.head(net.conv(x).relu() + net.side(x) + x)
    net = make_net(run, stem=nn.Conv2d(3, 4, 3), act=nn.ReLU(), conv=nn.Conv2d(4, 4, 1),
                   side=nn.Conv2d(4, 4, 1), head=nn.Conv2d(4, 2, 1))
    assert groups(net, see, image, False, placement='residual') == {frozenset({'conv', 'side'})}
    assert groups(net, see, image, False) == set()
