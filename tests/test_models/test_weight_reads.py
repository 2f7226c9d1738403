"""Layers whose weights are read by others, and weights that no module holds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

ELSEWHERE = {
    'a functional call': lambda net, x: F.conv2d(net.a(x), net.b.weight),
    'a view of it': lambda net, x: net.a(x).flatten(2).mT @ net.b.weight.view(4, 4).t(),
    'forward instead of a call': lambda net, x: net.b.forward(net.a(x)),
    'called too': lambda net, x: net.b(net.a(x)) * net.b.weight.norm(),
    'its bias': lambda net, x: net.b(net.a(x)) + net.b.bias.view(-1, 1, 1),
}


@pytest.mark.parametrize('how', ELSEWHERE)
def test_a_layer_that_others_read_stays_float_with_the_reason(how, make_net, make_ready, image):
    net = make_net(ELSEWHERE[how], a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
    before = net(image)
    ready = make_ready(net, image)
    assert list(ready.layers) == ['a'] and type(net.b) is nn.Conv2d
    (kept,) = ready.plan.kept_float
    assert kept.name == 'b' and 'read outside of its own calls' in kept.reason
    never = how in ('a functional call', 'a view of it', 'forward instead of a call')
    assert ('never come' in kept.reason) == never
    torch.testing.assert_close(net(image), before)


def tied(net, x):
    return net.b(net.a(x))


@pytest.mark.parametrize('change', [
    lambda net: nn.utils.weight_norm(net.b),
    lambda net: parametrizations.weight_norm(net.b),
    lambda net: setattr(net.b, 'weight', net.a.weight),
    lambda net: net.register_forward_hook(lambda net, args, out: print(net.b.weight.dtype)),
])
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_a_layer_may_be_made_of_parts_or_share_its_weight(change, make_net, see, image):
    net = make_net(tied, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    change(net)
    assert see(net, image).read_elsewhere == {}


def test_an_embedding_may_share_the_weight_of_a_layer(make_net, see):
    net = make_net(lambda net, x: net.last(net.words(x)), words=nn.Embedding(7, 4),
                   last=nn.Linear(4, 7))
    net.last.weight = net.words.weight
    assert see(net, torch.tensor([[1, 2]])).read_elsewhere == {}


def test_a_norm_that_others_read_is_not_folded(make_net, make_ready, image):
    net = make_net(lambda net, x: net.norm(net.a(x)) + net.norm.running_mean.view(-1, 1, 1),
                   a=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4))
    before = net(image)
    assert make_ready(net, image).folded == {}
    torch.testing.assert_close(net(image), before)


def test_weights_of_no_module_are_listed(make_net, make_ready, image):
    layers = [nn.Conv2d(4, 4, 3), nn.Linear(6, 5)]

    def run(net, x):
        x = net.a(x)
        for layer in layers:
            x = layer(x.relu())
        grid = torch.arange(5.).view(1, 5) * torch.ones(5, 1)  # made in the run
        return net.b(x) @ grid

    net = make_net(run, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    image = torch.randn(2, 3, 8, 8)
    kept = make_ready(net, image).plan.kept_float
    assert [(row.name, row.num_weights) for row in kept] == [
        ('<convolution>', 144), ('<addmm>', 30)] and 'ModuleList' in kept[0].reason
