"""Small models whose products of activations are modules."""

import torch
from torch import nn

from mmbitsplit.models.layers.product import Product


class Attention(nn.Module):
    """Self attention with masked keys; tokens (B, N, D), mask (B, N) of keys to leave out."""

    def __init__(self, width: int = 16, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scores, self.mixed = Product(), Product()

    def forward(self, x, mask=None):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.scores(q, k.mT) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None], float('-inf'))
        return self.proj(self.mixed(scores.softmax(-1), v).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Patches of images through blocks of attention and MLP, classes at the end.

    Args:
        depth: Number of blocks.
        shared: Whether they are one block, called side by side on so many inputs.
        masked: Whether the last four tokens are keys to nobody.
    """

    def __init__(self, depth: int = 1, shared: bool = False, masked: bool = False):
        super().__init__()
        self.depth, self.shared, self.masked = depth, shared, masked
        self.patch = nn.Conv2d(3, 16, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(1 if shared else depth))
        self.blocks = nn.ModuleList(Attention() for _ in self.norms)
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
                                  for _ in self.norms)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = self.patch(image).flatten(2).mT
        mask = None
        if self.masked:
            mask = torch.zeros(x.shape[:2], dtype=torch.bool)
            mask[:, -4:] = True
        if self.shared:
            return self.head(sum(self._block(0, x * (number + 1), mask)
                                 for number in range(self.depth)).mean(1))
        for number in range(self.depth):
            x = self._block(number, x, mask)
        return self.head(x.mean(1))

    def _block(self, number, x, mask):
        inputs = [self.norms[number](x)] + [mask] * self.masked
        x = x + self.blocks[number](*inputs)
        return x + self.mlps[number](x)


def left_to_open(found):
    """Names of modules that still multiply activations themselves, though they could be opened."""
    return [name for name, calls in found.sequences.items()
            if any(row['kind'] != 'pass' for rows in calls for row in rows)]
