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
