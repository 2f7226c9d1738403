"""Batch norms are folded where that is exact, and nowhere else."""

import pytest
import torch
from torch import nn

from mmbitsplit.models import layer_geometry
from mmbitsplit.models.surgery.fold_bn import fold_batch_norm, foldable_batch_norms


def conv(channels_in=3, channels_out=4, **options):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, **options)


class NormOfTwo(nn.BatchNorm2d):

    def forward(self, x):
        return super().forward(x) + x


def two_levels(net, x):
    first, second = net.a(x), net.a(x[..., ::2])
    return net.n(first).mean() + net.m(second).mean()


# name -> (run, modules): exact to fold, the norm's layer is 'a'
FOLDABLE = {
    'conv': (lambda net, x: net.n(net.a(x)).relu(), {}),
    'conv_no_bias': (lambda net, x: net.n(net.a(x)), {'a': lambda: conv(bias=False)}),
    'norm_by_name': (lambda net, x: net.n(input=net.a(x)), {}),
    'not_affine': (lambda net, x: net.n(net.a(x)), {'n': lambda: nn.BatchNorm2d(4, affine=False)}),
    'transposed': (lambda net, x: net.n(net.a(x)), {'a': lambda: nn.ConvTranspose2d(3, 4, 3)}),
    'linear': (lambda net, x: net.n(net.a(x.mean((2, 3)))),
               {'a': lambda: nn.Linear(3, 4), 'n': lambda: nn.BatchNorm1d(4)}),
    'shared_by_two_calls': (lambda net, x: net.n(net.a(x)).mean() + net.n(net.a(2 * x)).mean(), {}),
    'norm_read_twice': (lambda net, x: (lambda y: y + y.relu())(net.n(net.a(x))), {}),
    'sync': (lambda net, x: net.n(net.a(x)), {'n': lambda: nn.SyncBatchNorm(4)}),
}
# name -> (run, modules): what folding would change
NOT_FOLDABLE = {
    'layer_read_by_an_operation': (lambda net, x: (lambda y: net.n(y) + y)(net.a(x)), {}),
    'layer_read_by_a_layer': (lambda net, x: (lambda y: net.n(y) + net.c(y))(net.a(x)),
                              {'c': lambda: conv(4)}),
    'layer_read_by_two_norms': (lambda net, x: (lambda y: net.n(y) + net.m(y))(net.a(x)),
                                {'m': lambda: nn.BatchNorm2d(4)}),
    'layer_returned': (lambda net, x: (lambda y: {'raw': [y], 'out': net.n(y)})(net.a(x)), {}),
    'view_of_layer_returned': (lambda net, x: (lambda y: (y[:, :2], net.n(y)))(net.a(x)), {}),
    'norm_before_layer': (lambda net, x: net.a(net.n(x)), {'n': lambda: nn.BatchNorm2d(3)}),
    'norms_of_their_own_a_level': (two_levels, {'m': lambda: nn.BatchNorm2d(4)}),
    'layer_called_more_often': (lambda net, x: net.n(net.a(x)).mean() + net.a(2 * x).mean(), {}),
    'norm_called_on_other_things': (lambda net, x: net.n(net.a(x)) + net.n(x[:, :1].repeat(
        1, 4, 1, 1)), {}),
    'norm_of_two_layers': (lambda net, x: net.n(net.a(x)) + net.n(net.c(x)), {'c': conv}),
    'view': (lambda net, x: net.n(net.a(x)[..., ::2]), {}),
    'reordered': (lambda net, x: net.n(net.a(x).flip(1)), {}),
    'changed_in_place': (lambda net, x: net.n(net.a(x).relu_()), {}),
    'after_a_sum': (lambda net, x: net.n(net.a(x) + x[:, :1]), {}),
    'norm_that_does_more': (lambda net, x: net.n(net.a(x)), {'n': lambda: NormOfTwo(4)}),
    'no_running_statistics': (lambda net, x: net.n(net.a(x)), {
        'n': lambda: nn.BatchNorm2d(4, track_running_stats=False)}),
    'instance_norm': (lambda net, x: net.n(net.a(x)), {'n': lambda: nn.InstanceNorm2d(
        4, affine=True, track_running_stats=True)}),
    'other_dimension_of_a_linear': (
        lambda net, x: net.n(net.a(x[:, 0])),  # (2, 10, 12) -> (2, 10, 10): channels are rows
        {'a': lambda: nn.Linear(12, 10), 'n': lambda: nn.BatchNorm1d(10)}),
    'other_size_of_a_linear': (
        lambda net, x: net.n(net.a(x[:, 0])),
        {'a': lambda: nn.Linear(12, 7), 'n': lambda: nn.BatchNorm1d(10)}),
}


def build(make_net, case):
    run, modules = case
    modules = {'a': conv, 'n': lambda: nn.BatchNorm2d(4), **modules}
    return make_net(run, **{name: make() for name, make in modules.items()})


def tensors(output):
    return list(torch.utils._pytree.tree_flatten(output)[0])


@pytest.mark.parametrize('name', FOLDABLE)
def test_exact_cases_are_found_and_leave_the_output_as_it_was(make_net, make_ready, image, name):
    net = build(make_net, FOLDABLE[name])
    before = tensors(net(image))
    ready = make_ready(net, image)
    assert ready.folded == {'n': 'a'}
    assert isinstance(net.n, nn.Identity)
    assert ready.plan.kept_float == ()
    for after, expected in zip(tensors(net(image)), before, strict=True):
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', NOT_FOLDABLE)
def test_other_cases_are_left_alone(make_net, make_ready, image, name):
    net = build(make_net, NOT_FOLDABLE[name])
    before, norm = tensors(net(image)), net.n
    ready = make_ready(net, image)
    assert ready.folded == {}
    assert net.n is norm
    for after, expected in zip(tensors(net(image)), before, strict=True):
        assert torch.equal(after, expected)
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        assert 'n' in {part.name for part in ready.plan.kept_float}


def test_a_norm_in_training_mode_is_left_alone(make_net, see, image):
    net = build(make_net, FOLDABLE['conv'])
    net.n.train()
    assert foldable_batch_norms(net, see(net, image)) == {}


def test_the_norm_of_a_layer_that_stays_float_is_left_alone_and_listed(make_net, make_ready, image):
    net = make_net(lambda net, x: net.m(net.b(net.n(net.a(x)))), a=conv(), n=nn.BatchNorm2d(4),
                   b=conv(4), m=nn.BatchNorm2d(4))
    before = net(image)
    ready = make_ready(net, image, spec={'overrides': [{'match': 'a', 'skip': True}]})
    assert ready.folded == {'m': 'b'}
    assert {part.name for part in ready.plan.kept_float} == {'a', 'n'}
    assert isinstance(net.n, nn.BatchNorm2d)
    torch.testing.assert_close(net(image), before, rtol=1e-5, atol=1e-5)


LAYERS = {
    'conv': lambda bias: nn.Conv2d(6, 4, 3, bias=bias),
    'grouped': lambda bias: nn.Conv2d(6, 4, 3, groups=2, bias=bias),
    'depthwise': lambda bias: nn.Conv2d(6, 6, 3, groups=6, bias=bias),
    'transposed': lambda bias: nn.ConvTranspose2d(6, 4, 3, 2, bias=bias),
    'transposed_grouped': lambda bias: nn.ConvTranspose2d(6, 4, 3, 2, groups=2, bias=bias),
    'linear': lambda bias: nn.Linear(6, 4, bias=bias),
}


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('name', LAYERS)
def test_folded_weights_compute_layer_and_norm_in_one(settle, name, bias, affine):
    torch.manual_seed(0)
    layer = LAYERS[name](bias).double()
    linear = name == 'linear'
    channels = layer.out_features if linear else layer.out_channels
    norm = settle((nn.BatchNorm1d if linear else nn.BatchNorm2d)(channels, affine=affine).double())
    x = torch.randn((5, 6) if linear else (2, 6, 7, 8), dtype=torch.float64)
    expected = norm(layer(x))
    kept = layer.weight.clone()
    weight, new_bias = fold_batch_norm(layer.weight, layer.bias, layer_geometry(layer), norm)
    assert torch.equal(layer.weight, kept)  # the layer itself is not changed
    folded = LAYERS[name](True).double()
    folded.weight.data, folded.bias.data = weight, new_bias
    torch.testing.assert_close(folded(x), expected, rtol=1e-10, atol=1e-10)


def test_folding_keeps_the_dtype_of_the_layer(settle):
    layer, norm = nn.Conv2d(3, 4, 3), settle(nn.BatchNorm2d(4))
    weight, bias = fold_batch_norm(layer.weight, layer.bias, layer_geometry(layer), norm)
    assert weight.dtype == bias.dtype == torch.float32
    assert weight.shape == layer.weight.shape
