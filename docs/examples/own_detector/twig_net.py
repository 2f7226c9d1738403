"""A backbone that no library knows: depthwise blocks, two kinds of channel attention, odd sizes."""

import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


class TwigBlock(nn.Module):
    """Depthwise 3x3, attention between neighbouring channels, pointwise 1x1, shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.neighbours = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.norm1(self.depthwise(x)))
        means = out.mean((2, 3)).unsqueeze(1)  # (B, 1, C)
        out = out * self.neighbours(means).sigmoid().squeeze(1)[:, :, None, None]
        return x + self.norm2(self.pointwise(out))


@MODELS.register_module()
class TwigNet(BaseModule):
    """Halves the image ``len(channels)`` times; returns the last three maps.

    Args:
        channels: Of each stage.
        blocks: In each stage.
    """

    def __init__(self, channels: tuple[int, ...] = (24, 48, 96, 128), blocks: int = 2,
                 init_cfg: dict | None = None):
        super().__init__(init_cfg)
        self.gate = nn.Linear(1, 1)  # one layer for all stages
        self.halve, self.stages = nn.ModuleList(), nn.ModuleList()
        for before, after in zip((3, *channels), channels):
            self.halve.append(nn.Sequential(nn.Conv2d(before, after, 3, stride=2, bias=False),
                                            nn.BatchNorm2d(after), nn.SiLU()))
            self.stages.append(nn.Sequential(*(TwigBlock(after) for _ in range(blocks))))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = []
        for halve, stage in zip(self.halve, self.stages):
            height, width = x.shape[-2:]
            x = F.pad(x, (0, 1 + width % 2, 0, 1 + height % 2))  # depends on the image's size
            x = stage(halve(x))
            strength = self.gate(x.mean((1, 2, 3))[:, None]).sigmoid()
            outs.append(x * strength[:, :, None, None])
        return tuple(outs[-3:])
