"""Models with several widths made by plain rounding, a calibration a width."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.models import quantized_layers


class Block(nn.Module):
    """Two convolutions and a shortcut, which is one itself where the channels change."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.down = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return (self.conv2(self.conv1(x).relu()) + self.down(x)).relu()


class Classifier(nn.Module):
    """A stem, three blocks, class scores."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(6, 6), Block(6, 8), Block(8, 8))
        self.classify = nn.Linear(8, 5)

    def forward(self, x):
        return self.classify(4 * self.blocks(self.stem(x).relu()).mean((2, 3)))


def float_classifier(seed: int = 0) -> nn.Module:
    """With weights of its own, made larger: scores differ."""
    torch.manual_seed(seed)
    model = Classifier().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.7)
    return model


def pictures(count: int = 3, seed: int = 1) -> list[torch.Tensor]:
    """Batches of four."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(count)]


def with_widths(model: nn.Module, batches: Sequence[torch.Tensor],
                widths: Sequence[int] = (2, 3, 4, 8)) -> nn.Module:
    """Returns a quantized copy whose inner layers have all widths, of weights and inputs."""
    solutions: dict[str, dict] = {}
    for bits in widths:
        made = copy.deepcopy(model)
        quantize_model(made, batches, dict(
            method=dict(type='RoundToNearest'), weight=dict(num_bits=bits),
            activation=dict(num_bits=bits, mode='per_channel')))
        for name, layer in quantized_layers(made):
            solutions.setdefault(name, {})[bits] = layer.solution()
    for name, layer in quantized_layers(made):
        widest, *others = (solutions[name][bits] for bits in sorted(widths, reverse=True))
        others = [one for one in others if one.num_bits != widest.num_bits]
        if others:
            layer.install(replace(widest, narrower=tuple(others), narrower_inputs=tuple(
                one.qparams for one in others)))
    return made
