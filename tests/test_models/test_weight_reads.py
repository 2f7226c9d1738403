"""Layers whose weights are read by others, and weights that no module holds."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from mmbitsplit.calibration import calibrate
from mmbitsplit.models import describe, rebuild
from mmbitsplit.structures import QuantSpec

ELSEWHERE = {
    'a functional call': lambda net, x: F.conv2d(net.a(x), net.b.weight),
    'a view of it': lambda net, x: net.a(x).flatten(2).mT @ net.b.weight.view(4, 4).t(),
    'forward instead of a call': lambda net, x: net.b.forward(net.a(x)),
    'both ways': lambda net, x: net.b(net.a(x)) + net.b.forward(net.a(x)),
    'a product after a look': lambda net, x: F.conv2d(
        net.b(net.a(x)) * net.b.weight.norm(), net.b.weight),
    'a look after a product': lambda net, x: F.conv2d(
        net.b(net.a(x)), net.b.weight) * net.b.weight.norm(),
    'it is written to': lambda net, x: net.b(net.a(x)) * net.b.weight.data.clamp_(-9, 9).norm(),
    'a look that is all': lambda net, x: net.a(x) * net.b.weight.norm(),
}


@pytest.mark.parametrize('how', ELSEWHERE)
def test_a_layer_that_others_read_stays_float_with_the_reason(how, make_net, make_ready, image):
    net = make_net(ELSEWHERE[how], a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
    before = net(image)
    ready = make_ready(net, image)
    assert list(ready.layers) == ['a'] and type(net.b) is nn.Conv2d
    (kept,) = ready.plan.kept_float
    assert kept.name == 'b' and 'read outside of its own calls' in kept.reason
    never = how in ('a functional call', 'a view of it', 'forward instead of a call',
                    'a look that is all')
    assert ('never come' in kept.reason) == never
    torch.testing.assert_close(net(image), before)


def looked_at(net, x):
    seen = net.b.weight.abs().amax((1, 2, 3)) + net.b.bias
    return net.norm(net.b(net.a(x))) * seen.view(-1, 1, 1)


def look_net(make_net, norm, kind=nn.Conv2d, groups=1, gamma=None):
    net = make_net(looked_at, a=nn.Conv2d(3, 4, 1), b=kind(4, 4, 3, groups=groups), norm=norm())
    if gamma is not None:
        net.norm.weight.data.copy_(torch.tensor(gamma))
    return net


@pytest.mark.parametrize('kind, groups', [(nn.Conv2d, 1), (nn.Conv2d, 2),
                                          (nn.ConvTranspose2d, 2)])
@pytest.mark.parametrize('norm', [nn.Identity, lambda: nn.BatchNorm2d(4)])
@pytest.mark.parametrize('mode', ['per_tensor', 'ecaq', 'per_channel', None])
def test_what_others_see_of_a_layer_is_in_the_units_of_the_float_one(mode, norm, kind, groups,
                                                                     make_net, image):
    net = look_net(make_net, norm, kind, groups)
    wanted, weight, bias = net(image), net.b.weight.detach(), net.b.bias.detach()
    fresh = copy.deepcopy(net)
    ready, report = calibrate(net, [image], QuantSpec.from_dict(dict(
        weight=dict(num_bits=8), activation=dict(mode=mode) if mode else dict(num_bits=None))),
        run=lambda net, x: net(x))
    folded = isinstance(fresh.norm, nn.BatchNorm2d)
    assert len(ready.folded) == folded and set(ready.layers) == {'a', 'b'}
    (note,) = [note for row in report.layers for note in row.notes if 'read elsewhere' in note]
    assert "by 'abs'" in note
    for shown, own in ((net.b.weight, weight), (net.b.bias, bias)):
        assert shown.shape == own.shape and 0 < (shown - own).norm() < 0.02 * own.norm()
    assert net.b.weight is net.b.weight  # not made anew for each look
    assert (net(image) - wanted).norm() < 0.02 * wanted.norm()
    rebuild(fresh, json.loads(json.dumps(describe(ready))))
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.b.weight, net.b.weight) and torch.equal(fresh.b.bias, net.b.bias)
    with torch.no_grad():
        assert torch.equal(fresh(image), net(image))
        assert torch.equal(copy.deepcopy(net)(image), net(image))


def test_a_norm_with_a_channel_of_zero_is_not_folded_where_others_see_the_weight(
        make_net, make_ready, image):
    net = look_net(make_net, lambda: nn.BatchNorm2d(4), gamma=[1.0, 0.0, -2.0, 0.5])
    before = net(image)
    assert not make_ready(net, image).folded
    torch.testing.assert_close(net(image), before)


def test_a_float_layer_without_bias_shows_none(make_net, make_ready, image, quantize_all):
    net = make_net(lambda net, x: net.norm(net.a(x)), a=nn.Conv2d(3, 4, 1, bias=False),
                   norm=nn.BatchNorm2d(4))
    weight = net.a.weight.detach().clone()
    ready = make_ready(net, image)
    torch.testing.assert_close(net.a.weight, weight)
    quantize_all(ready)
    assert net.a.bias is None and net.a.product_bias is not None
    assert (net.a.weight - weight).norm() < 0.01 * weight.norm()


def test_what_is_seen_follows_the_layer(make_net, make_ready, image, quantize_all):
    net = make_net(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    ready = make_ready(net, image)
    quantize_all(ready)
    before = net.b.weight
    net.b.input_quantizer.scale.mul_(2)
    torch.testing.assert_close(net.b.weight, before / 2)
    net.double()
    assert net.b.bias.dtype == torch.float64
    net.b.to_float()
    assert net.b.weight is net.b.product_weight


def standardized(net, x):
    return net.b(net.a(x)) * net.b.weight.mean()


class Standardized(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def test_a_class_that_multiplies_by_another_weight_than_it_shows_stays_float(
        make_net, make_ready, image):
    net = make_net(standardized, a=nn.Conv2d(3, 4, 1), b=Standardized(4, 4, 1))
    before = net(image)
    assert set(make_ready(net, image).layers) == {'a'}
    assert torch.equal(net(image), before)


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
