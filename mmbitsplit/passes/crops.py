"""Crops of a convolutional unit's maps: where they are taken, and what of their output counts."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmbitsplit.passes.sampling import generator_of
from mmbitsplit.structures import LayerGeometry

INNER = 8  # outputs of a crop that count, along each side, at least


@dataclass(frozen=True)
class Crops:
    """How crops are taken from a unit's maps.

    Args:
        stride: Inputs along each side for one output.
        margin: Outputs at each side that what lies outside of a crop would reach.
        inner: Outputs that count, along each side.
        count: Crops of a call.
    """

    stride: int
    margin: int
    inner: int = INNER
    count: int = 1

    @property
    def size(self) -> int:
        """Inputs along each side."""
        return (self.inner + 2 * self.margin) * self.stride

    def fit(self, x: Tensor) -> bool:
        """Whether a map (B, C, H, W) is as large as a crop."""
        return x.dim() == 4 and min(x.shape[-2:]) >= self.size

    def draw(self, x: Tensor, key: tuple) -> Tensor:
        """Places of crops: (count, 3) of image, row and column in units of outputs.

        Images take turns.

        Args:
            x: (B, C, H, W) the unit's input.
            key: Whatever names the draw.
        """
        generator = generator_of(key)
        images = (torch.arange(self.count) + int(
            torch.randint(x.shape[0], (), generator=generator))) % x.shape[0]
        ends = [(size - self.size) // self.stride + 1 for size in x.shape[-2:]]
        return torch.stack([images, *(torch.randint(end, (self.count,), generator=generator)
                                      for end in ends)], 1)

    def inputs(self, x: Tensor, places: Tensor) -> Tensor:
        """Crops (count, C, size, size) of a unit's input."""
        return self._cut(x, places, self.stride, 0, self.size)

    def outputs(self, y: Tensor, places: Tensor) -> Tensor:
        """What counts of the unit's output there, (count, M, inner, inner)."""
        return self._cut(y, places, 1, self.margin, self.inner)

    def inside(self, y: Tensor) -> Tensor:
        """What counts of the output that a unit makes of crops."""
        end = self.margin + self.inner
        return y[..., self.margin:end, self.margin:end]

    def _cut(self, maps: Tensor, places: Tensor, step: int, start: int, size: int) -> Tensor:
        return torch.stack([
            maps[image, :, row * step + start:row * step + start + size,
                 column * step + start:column * step + start + size]
            for image, row, column in places.tolist()])


def find_crops(geometries: Iterable[LayerGeometry], modules: Iterable[nn.Module], x: Tensor,
               y: Tensor) -> Crops | None:
    """Says how crops of a unit are taken; whether they are right is for the caller to try.

    Args:
        geometries: Of its layers.
        modules: All inside, for the sizes of pooling windows.
        x, y: Input and output of a call.

    Returns:
        ``None`` where layers are no convolutions or maps are not in proportion.
    """
    geometries = list(geometries)
    if x.dim() != 4 or y.dim() != 4 or any(one.kind != 'conv2d' for one in geometries):
        return None
    strides = {max(1, round(before / max(1, after)))
               for before, after in zip(x.shape[-2:], y.shape[-2:])}
    if len(strides) > 1 or min(y.shape[-2:]) < 1:
        return None
    stride, = strides
    # Every window counts as if it came after all steps of the stride: a bound, never too small.
    reach = sum(max(map(one_side, one.kernel_size, one.dilation, one.padding))
                for one in geometries)
    reach += sum(_of_pooling(module) for module in modules)
    return Crops(stride, reach)


def one_side(kernel: int, dilation: int, padding: int) -> int:
    """How far a window reaches beyond its output's place, to the side where it is more."""
    span = (kernel - 1) * dilation
    return padding if span == 2 * padding else span


def _of_pooling(module: nn.Module) -> int:
    if not isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        return 0
    kernels, paddings = (value if isinstance(value, tuple) else (value, value)
                         for value in (module.kernel_size, module.padding))
    return max(one_side(kernel, 1, padding) for kernel, padding in zip(kernels, paddings))
