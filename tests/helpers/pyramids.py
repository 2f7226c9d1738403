"""Networks of several levels that share a head, for tests."""

import torch
from torch import nn


class Pyramid(nn.Module):
    """Makes three levels of different sizes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(4, 4, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, x):
        levels = [torch.relu(self.stem(x))]
        for conv in self.down:
            levels.append(torch.relu(conv(levels[-1])))
        return levels


class LevelHead(nn.Module):
    """Two towers that all levels share, as in RetinaNet."""

    def __init__(self):
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4), nn.ReLU(inplace=True)) for _ in range(2))
        self.classify, self.regress = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 2, 1)

    def single(self, x):
        return self.classify(self.towers[0](x)), self.regress(self.towers[1](x))

    def forward(self, levels):
        return [self.single(level) for level in levels]


class Detector(nn.Module):
    def __init__(self, *heads: nn.Module):
        super().__init__()
        self.neck, self.heads = Pyramid(), nn.ModuleList(heads)
        self.end = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        levels = self.neck(x)
        outputs = [head(list(levels)) for head in self.heads]
        return outputs, self.end(levels[-1])


class Recurrent(nn.Module):
    """A layer that feeds itself, and one after it."""

    def __init__(self, steps: int = 2, pair: bool = False):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.cell = nn.Conv2d(4, 4, 3, padding=1)
        self.back = nn.Conv2d(4, 4, 3, padding=1) if pair else nn.Identity()
        self.steps = steps

    def forward(self, levels):
        outputs = []
        for x in levels:
            x = self.enter(x)
            for _ in range(self.steps):
                x = torch.relu(self.cell(x))
                x = torch.tanh(self.back(x))
            outputs.append(self.leave(x))
        return outputs


class Chained(nn.Module):
    """Five layers in a row over all levels; what else reads the first one's output varies."""

    def __init__(self, aside=None):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(5))
        self.aside = aside

    def forward(self, levels):
        outputs = []
        for x in levels:
            first = torch.relu(self.convs[0](x))
            x = first
            for conv in self.convs[1:4]:
                x = torch.relu(conv(x))
            outputs.append(self.convs[4](x if self.aside is None else self.aside(first, x)))
        return outputs
