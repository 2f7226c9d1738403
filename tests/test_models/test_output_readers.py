"""Who reads an output: found by watching, through ReLUs of every kind, whole tensors only."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmbitsplit.models.watch.output_readers import OPERATION, RETURNED, Reading


def conv(channels_in=4, channels_out=4):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def read(*names, rectified=False):
    return {Reading(name, rectified) for name in names}


@pytest.mark.parametrize(('between', 'rectified'), [
    (lambda y: y, False), (lambda y: y.relu(), True), (lambda y: F.relu(y), True),
    (lambda y: torch.relu_(y), True), (lambda y: F.relu(y, inplace=True), True),
    (nn.ReLU(), True), (nn.ReLU(inplace=True), True), (lambda y: nn.ReLU()(y.relu_()), True),
    (nn.Identity(), False), (nn.Dropout().eval(), False),
    (nn.Sequential(nn.Identity(), nn.ReLU()), True), (lambda y: y.contiguous(), False)])
def test_a_relu_or_nothing_is_looked_through(make_net, see, image, between, rectified):
    flow = see(make_net(lambda net, x: net.b(between(net.a(x))), a=conv(3), b=conv()), image)
    assert flow.readings == {'a': read('b', rectified=rectified), 'b': read(RETURNED)}


@pytest.mark.parametrize('between', [
    lambda y: y + 1, lambda y: y.add_(1), lambda y: y * 2, F.relu6, F.silu, F.leaky_relu,
    lambda y: y.clamp(min=0, max=3), lambda y: y[:, :4], lambda y: y[..., ::2], lambda y: y.clone(),
    lambda y: y.view(y.shape), lambda y: torch.cat([y[:, :2], y[:, 2:]], 1),
    lambda y: F.max_pool2d(y, 2), lambda y: F.interpolate(y, scale_factor=2.0),
    lambda y: y[:, :2].relu_().repeat(1, 2, 1, 1), lambda y: y.relu() * y.sigmoid(),
    nn.GroupNorm(2, 4).eval(), lambda y: torch.zeros_like(y).copy_(y)])
def test_anything_else_is_an_operation(make_net, see, image, between):
    net = make_net(lambda net, x: net.b(between(net.a(x))), a=conv(3), b=conv())
    readings = see(net, image).readings['a']
    assert Reading(OPERATION, False) in readings or Reading(OPERATION, True) in readings


def test_what_lies_before_and_behind_a_relu_is_told_apart(make_net, see, image):
    def run(net, x):
        y = net.a(x)
        return net.c(y.relu()) + net.b(y)
    flow = see(make_net(run, a=conv(3), b=conv(), c=conv()), image)
    assert flow.readings['a'] == read('b') | read('c', rectified=True)
    assert flow.readings['b'] == flow.readings['c'] == read(OPERATION)


def test_a_residual_block_that_adds_in_place(make_net, see, image):
    def run(net, x):
        identity = net.a(x).relu_()
        out = net.c(net.b(identity).relu_())
        out += identity
        return net.d(out.relu_())
    flow = see(make_net(run, a=conv(3), b=conv(), c=conv(), d=conv()), image)
    assert flow.readings['a'] == read('b', OPERATION, rectified=True)
    assert flow.readings['b'] == read('c', rectified=True)
    assert flow.readings['c'] == read(OPERATION) | read('d', rectified=True)
    assert flow.readings['d'] == read(RETURNED)


def test_every_call_counts(make_net, see, image):
    def run(net, x):
        return [net.end(net.head(net.a(level)).relu()) for level in (x, x[..., ::2])], \
            net.head(net.b(x))
    flow = see(make_net(run, a=conv(3), b=conv(3), head=conv(), end=conv()), image)
    assert flow.readings['a'] == flow.readings['b'] == read('head')
    assert flow.readings['head'] == read('end', rectified=True) | read(RETURNED)


def test_batch_norms_are_read_and_read_from(make_net, see, image):
    net = make_net(lambda net, x: net.b(net.n(net.a(x)).relu_()), a=conv(3), b=conv(),
                   n=nn.BatchNorm2d(4))
    readings = see(net, image).readings
    assert readings['a'] == read('n') and readings['n'] == read('b', rectified=True)


class UnseenKernel(nn.Module):
    """Stands for a compiled operation that no dispatch mode sees."""

    def forward(self, x):
        return torch.from_numpy(x.detach().numpy() * 2)


def test_a_kernel_that_no_dispatch_mode_sees_reads_too(make_net, see, image):
    def run(net, x):
        y = net.a(x)
        return net.b(y) + net.kernel(y).sum()
    net = make_net(run, a=conv(3), b=conv(), kernel=UnseenKernel())
    assert see(net, image).readings['a'] == read('b', OPERATION)


def test_what_is_read_behind_a_barrier_is_read(make_net, see, image, decoding_barrier):
    net = make_net(lambda net, x: (net.b(net.a(x)), net.decode(net.kept)), a=conv(3), b=conv())
    net.a.register_forward_hook(lambda module, args, output: setattr(net, 'kept', output))
    net.decode = lambda y: y.mean((2, 3))
    flow = see(net, image, barriers=[decoding_barrier(net)])
    assert flow.readings['a'] == read('b', OPERATION)


def test_an_output_without_elements_is_followed_all_the_same(make_net, see):
    net = make_net(lambda net, x: net.b(net.act(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2),
                   act=nn.ReLU())
    assert see(net, torch.zeros(0, 3)).readings['a'] == read('b', rectified=True)
