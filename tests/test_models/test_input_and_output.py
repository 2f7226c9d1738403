"""What counts as the input and the output of a model, and which layers are the first."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmbitsplit.models import layer_role, prepare, watch
from mmbitsplit.planning import make_plan
from mmbitsplit.structures import QuantSpec


def conv(channels_in=4, channels_out=4):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def roles(flow):
    return {name: layer_role(name, flow) for name in flow.order}


def test_only_the_first_layer_of_a_residual_stream_is_first(make_net, see, image):
    def run(net, x):
        for layer in (net.a, net.b, net.c):
            x = x + layer(x)
        return net.head(x)
    flow = see(make_net(run, a=conv(3, 3), b=conv(3, 3), c=conv(3, 3), head=conv(3)), image)
    assert roles(flow) == {'a': 'first', 'b': 'inner', 'c': 'inner', 'head': 'last'}


class Block(nn.Module):
    """Of a language model."""

    def __init__(self, size):
        super().__init__()
        self.norm, self.q, self.k, self.v, self.o = (
            nn.LayerNorm(size), *(nn.Linear(size, size) for _ in range(4)))
        self.fc1, self.fc2 = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        y = self.norm(x)
        y = nn.functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
        x = x + self.o(y)
        return x + self.fc2(nn.functional.gelu(self.fc1(x)))


@pytest.mark.parametrize('ids', [lambda ids: ids, lambda ids: (ids + 1).flip(1)])
@pytest.mark.parametrize('lookup', [
    lambda net, ids: net.words(ids), lambda net, ids: nn.functional.embedding(
        ids, net.words.weight), lambda net, ids: net.words(ids) + net.places(
            torch.arange(ids.shape[1]))])
def test_an_embedding_is_a_layer_so_nothing_after_it_is_first(make_net, see, lookup, ids):
    net = make_net(lambda net, x: net.head(net.blocks(lookup(net, ids(x)))),
                   words=nn.Embedding(11, 8), places=nn.Embedding(5, 8),
                   blocks=nn.Sequential(Block(8), Block(8)), head=nn.Linear(8, 11))
    flow = see(net, torch.randint(0, 10, (2, 5)))
    assert set(roles(flow).values()) == {'inner', 'last'}
    assert roles(flow)['head'] == 'last'
    assert flow.sources['blocks.0.q'] in ({'words'}, {''})


def test_tied_weights_make_an_embedding_no_less_a_layer(make_net, see):
    net = make_net(lambda net, x: net.out(net.fc(net.words(x))), words=nn.Embedding(11, 8),
                   fc=nn.Linear(8, 8), out=nn.Linear(8, 11))
    net.out.weight = net.words.weight
    assert roles(see(net, torch.arange(6).view(2, 3))) == {'fc': 'inner', 'out': 'last'}


@pytest.mark.parametrize(('layer', 'shape'), [
    (nn.Conv1d(3, 4, 1), (2, 3, 4)), (nn.LSTM(4, 4, batch_first=True), (2, 3, 4)),
    (nn.MultiheadAttention(4, 2, batch_first=True), (2, 3, 4))])
def test_a_kind_that_stays_float_is_a_layer_too(make_net, see, layer, shape):
    """What comes after it is not fed by the input alone."""
    def run(net, x):
        out = net.odd(x, x, x) if isinstance(layer, nn.MultiheadAttention) else net.odd(x)
        return net.b(net.a(out[0] if isinstance(out, tuple) else out))
    flow = see(make_net(run, odd=layer, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), torch.randn(shape))
    assert roles(flow) == {'a': 'inner', 'b': 'last'}


@pytest.mark.parametrize('before', [
    lambda net, x: x + net.table, lambda net, x: x + net.places(torch.arange(10)),
    lambda net, x: torch.cat([net.table.expand(2, -1, -1, -1), x]),
    lambda net, x: (x - x.mean()) * net.gain, lambda net, x: torch.cat(
        [x[..., ::2, ::2], x[..., 1::2, 1::2]], 1)[:, :3]])
def test_parameters_added_to_the_input_make_no_layer(make_net, see, image, before):
    """Positions, class tokens, gains; a Focus stem only moves pixels."""
    net = make_net(lambda net, x: net.b(net.a(before(net, x))), a=conv(3), b=conv(),
                   places=nn.Embedding(12, 12))
    net.table, net.gain = nn.Parameter(torch.randn(1, 3, 10, 12)), nn.Parameter(torch.ones(1))
    assert roles(see(net, image)) == {'a': 'first', 'b': 'last'}


def test_a_layer_first_in_one_of_its_calls_is_first(make_net, see, image):
    flow = see(make_net(lambda net, x: net.a(net.a(x)), a=conv(3, 3)), image)
    assert roles(flow) == {'a': 'first+last'}


def test_bytes_that_a_run_prepares_are_the_image(make_net):
    """As a data preprocessor does: colours swapped as integers, then to float, normed, stacked."""
    net = make_net(lambda net, x: net.b(net.a(x)), a=conv(3), b=conv())
    batch = {'inputs': [torch.randint(0, 255, (3, 10, 12), dtype=torch.uint8) for _ in range(2)]}

    def run():
        return net.run(net, torch.stack([x[[2, 1, 0]].float() / 255 for x in batch['inputs']]))
    assert roles(watch(net, run, inputs=batch)) == {'a': 'first', 'b': 'last'}
    assert roles(watch(net, run)) == {'a': 'inner', 'b': 'last'}  # nothing was said of the batch


@dataclasses.dataclass
class Raw:
    raw: torch.Tensor
    normed: torch.Tensor


CARRIERS = [lambda *two: two, Raw, lambda raw, normed: SimpleNamespace(a=[raw], b={'c': normed})]


@pytest.mark.parametrize('carrier', CARRIERS)
@pytest.mark.parametrize('call', [
    lambda net, x: net(x), lambda net, x: net.features(x), lambda net, x: net.inner(x)])
def test_a_norm_is_not_folded_under_what_the_caller_gets(make_net, settle, image, carrier, call):
    """Whatever carries it, and whichever method of the model the run calls."""
    inner = make_net(lambda net, x: carrier(raw := net.a(x), net.b(net.n(raw).relu())),
                     a=conv(3), n=nn.BatchNorm2d(4), b=conv())
    net = make_net(lambda net, x: net.inner(x), inner=inner)
    net.features = inner.forward
    before = call(net, image)
    flow = watch(net, lambda: call(net, image), inputs=image)
    assert roles(flow) == {'inner.a': 'first', 'inner.b': 'last'}
    prepared = prepare(net, flow, make_plan(net, flow, QuantSpec.from_dict({})))
    assert prepared.folded == {}
    after = call(net, image)
    for old, new in zip(_both(before), _both(after)):
        torch.testing.assert_close(new, old)


def _both(value):
    if isinstance(value, tuple):
        return value
    return (value.raw, value.normed) if isinstance(value, Raw) else (value.a[0], value.b['c'])


def test_an_owner_that_returns_an_object_says_what_is_in_it(make_net, see, image):
    block = make_net(lambda net, x: SimpleNamespace(out=net.b(net.a(x))), a=conv(3), b=conv())
    net = make_net(lambda net, x: net.c(net.block(x).out), block=block, c=conv())
    assert see(net, image).returned['block'] == {'block.b'}
