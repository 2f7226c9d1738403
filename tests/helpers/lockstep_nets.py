"""Networks whose batches or layers are called in unusual ways, for tests."""

import torch
from torch import nn


class Branches(nn.Module):
    """Two parallel branches, one after the other in time; then both join."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.SiLU(),
                                  nn.Conv2d(4, 4, 1))
        self.right = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(),
                                   nn.ConvTranspose2d(4, 4, 2, stride=2))
        self.join = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.join(torch.cat([self.left(x), self.right(x)], 1))


class Optional(nn.Module):
    """Runs a branch only on images that are bright."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        bright = x.mean() > 0
        x = torch.relu(self.stem(x))
        if bright:
            x = torch.relu(self.branch(x))
        return self.head(x)


class Counter(nn.Module):
    def __init__(self, tell):
        super().__init__()
        self.tell = tell  # a function: what a forward writes on the module is taken back

    def forward(self, x):
        self.tell(x)
        return x


class TwoStage(nn.Module):
    """Scores positions, takes the best rows, and runs a second stage on them."""

    def __init__(self, rows: int | None = 6):
        super().__init__()
        self.rows = rows
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.score = nn.Conv2d(8, 1, 1)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 3)
        self.tell = lambda chosen: None

    def select(self, scores):
        flat = scores.flatten(1)
        if self.rows is None:  # how many depends on the data too
            return (flat > flat.mean()).nonzero()
        batch = torch.arange(len(flat)).repeat_interleave(self.rows)
        return torch.stack([batch, flat.topk(self.rows).indices.flatten()], 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        chosen = self.select(self.score(x))
        self.tell(chosen.clone())
        rows = x.flatten(2).transpose(1, 2)[chosen[:, 0], chosen[:, 1]]
        return self.second(torch.relu(self.first(rows)))


class Chain(nn.Module):
    """The model itself calls one layer twice, the second time on its own output."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.middle, self.end = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.shared(x))
        x = torch.relu(self.middle(x))
        return self.end(torch.relu(self.shared(x)))


class Stages(nn.Module):
    """A layer is shared by the parts before and after a choice of rows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.shared = nn.Linear(6, 6)
        self.score, self.end = nn.Linear(6, 1), nn.Linear(6, 2)

    def select(self, scores):
        return scores.flatten().topk(5).indices

    def forward(self, x):
        x = torch.relu(self.shared(torch.relu(self.stem(x))))
        rows = x[self.select(self.score(x))]
        return self.end(torch.relu(self.shared(rows)))
