"""What a solver is given: sums over sampled positions, or the positions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerMeans:
    """Means over K sampled positions; x what enters the product, y the float output, no bias.

    Args:
        x_sum: (G, N).
        y_sum: (G, M).
        count: K.
    """

    x_sum: Tensor
    y_sum: Tensor
    count: int

    @property
    def x_mean(self) -> Tensor:
        """Mean of x, (G, N)."""
        return self.x_sum / self.count

    @property
    def y_mean(self) -> Tensor:
        """Mean of y, (G, M)."""
        return self.y_sum / self.count


@dataclass(frozen=True, kw_only=True)
class LayerStatistics(LayerMeans):
    """Sums of products over the positions: all that a solver needs of them.

    Shapes: ``gram`` (G, N, N), ``cross`` (G, M, N), ``y_sq`` (G, M); all sums are float64 for
    small layers and float32 for large ones.
    """

    gram: Tensor
    cross: Tensor
    y_sq: Tensor

    def __add__(self, other: 'LayerStatistics') -> 'LayerStatistics':
        return LayerStatistics(**{name: getattr(self, name) + getattr(other, name)
                                  for name in (*SUMS, 'count')})

    def to(self, dtype: torch.dtype) -> 'LayerStatistics':
        """The same in another dtype."""
        return LayerStatistics(count=self.count,
                               **{name: getattr(self, name).to(dtype) for name in SUMS})


SUMS = ('gram', 'cross', 'y_sq', 'x_sum', 'y_sum')  # what adds up over positions, beside count


@dataclass(frozen=True, kw_only=True)
class RowStatistics(LayerMeans):
    """The positions themselves, for layers whose gram would be larger than they are.

    Args:
        x: (G, N, K) what enters the product.
        y: (G, M, K) float outputs without bias.
        centred: Whether means are to be taken out (the bias is fitted too).
        lowest: Given when x holds integers from here to 255 more, one for all or (G, N, 1).
    """

    x: Tensor
    y: Tensor
    centred: bool = False
    lowest: int | Tensor | None = None
