"""A net whose layers and norms all have classes of their own; several tests calibrate it."""

import torch.nn.functional as F
from torch import nn


class SameConv(nn.Conv2d):
    """Pads as TensorFlow does."""

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride,
                                        strict=True):  # both are square
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class StandardizedConv(nn.Conv2d):

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class NormAct(nn.BatchNorm2d):

    def forward(self, x):
        return F.silu(super().forward(x))


class CosineConv(nn.Conv2d):
    """Normalizes input and weight, and has a scale and an activation behind the product."""

    def forward(self, x):
        x = self._conv_forward(F.normalize(x, dim=1), F.normalize(self.weight, dim=1), None)
        return F.leaky_relu(x * 8 + self.bias.view(-1, 1, 1), 0.1)


class OwnClasses(nn.Module):
    """A stem, a body and a head of two layers that runs on two levels."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = SameConv(3, 8, 3, 2, bias=False), NormAct(8)
        self.body = StandardizedConv(8, 8, 3, padding=1, groups=2)
        self.towers = CosineConv(8, 8, 1)
        self.last = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 2, 1))

    def forward(self, x):
        x = self.norm(self.stem(x))
        return [self.last(self.towers(level)) for level in (self.body(x), F.max_pool2d(x, 2))]
