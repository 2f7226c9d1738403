"""Layers whose class does what cannot be part of a quantized layer stay float, with the reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Rolled(nn.Conv2d):
    step = 'aten.roll'

    def forward(self, x):
        return super().forward(x.roll(1, 2))


class Gated(nn.Conv2d):
    """Does something else for large inputs only, which may not be there."""

    step = 'uses its input again'

    def forward(self, x):
        return super().forward(x) * (1 + (x[:, :1] > 100))


class Residual(nn.Conv2d):
    step = 'uses its input again'

    def forward(self, x):
        return super().forward(x) + x


class Dynamic(nn.Conv2d):
    step = 'makes its weight or bias out of its input'

    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean(), self.bias)


class Twice(nn.Conv2d):
    step = 'computes 2 products'

    def forward(self, x):
        return super().forward(super().forward(x).relu())


class Adapter(nn.Conv2d):
    step = 'holds layers of its own'

    def __init__(self, *args):
        super().__init__(*args)
        self.down = nn.Conv2d(*args)
        self.down.weight.data.zero_()

    def forward(self, x):
        return super().forward(x) + self.down(x)


class PaddedWithOnes(nn.Conv2d):
    step = 'pads its input with 1'

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), value=1.0))


class Branching(nn.Conv2d):
    step = 'reads numbers off its input'

    def forward(self, x):
        return super().forward(x * 2 if x.max() > 100 else x)


class OddPadding(nn.Conv2d):
    """Pads inputs of an odd height only; the ones seen are even."""

    step = 'computes something else on inputs of other sizes'

    def forward(self, x):
        return super().forward(F.pad(x, (0, 0, 3, 0)) if x.shape[2] % 2 else x)


class Noisy(nn.Conv2d):
    step = 'does not compute the same in every call'

    def forward(self, x):
        return super().forward(x + torch.randn(x.shape))


class Alternating(nn.Conv2d):
    """Another weight in every call."""

    step = 'does not compute the same in every call'
    calls = 0

    def forward(self, x):
        self.calls += 1
        return F.conv2d(x, self.weight * self.calls, self.bias)


class InPlace(nn.Conv2d):
    step = 'changes its input in place'

    def forward(self, x):
        return super().forward(x.mul_(2))


@pytest.mark.parametrize('cls', [Rolled, Gated, Residual, Dynamic, Twice, Adapter, PaddedWithOnes,
                                 Branching, OddPadding, Noisy, Alternating, InPlace],
                         ids=lambda cls: cls.__name__)
def test_what_cannot_be_part_of_a_layer_stays_float_with_the_reason(make_net, make_ready, image,
                                                                     cls):
    net = make_net(lambda net, x: net.c(net.b(net.b(net.a(x)))), a=nn.Conv2d(3, 4, 1),
                   b=cls(4, 4, 1), c=nn.Conv2d(4, 2, 1))
    ready = make_ready(net, image)
    assert type(net.b) is cls
    listed = {part.name: part.reason for part in ready.plan.kept_float}
    assert 'b' in listed
    assert cls.step in listed['b']


def test_noise_is_no_constant_step(make_net, make_ready, image):
    net = make_net(lambda net, x: net.b(net.a(x)), a=Noisy(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    ready = make_ready(net, image)
    assert [part.reason for part in ready.plan.kept_float] \
        == ['its class computes something else on inputs of other sizes']
