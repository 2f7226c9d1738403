"""Weight and bias of a layer in float, which stay beside its codes until calibration ends."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class FloatWeights:
    """What a layer computes with in float.

    Args:
        weight: As torch stores it for this kind.
        bias: (out_channels,) or ``None``.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def map(self, fn: Callable[[Tensor], Tensor]) -> 'FloatWeights':
        """The same on another device or in another dtype."""
        return FloatWeights(*(value if value is None else nn.Parameter(
            fn(value.detach()), requires_grad=value.requires_grad)
            for value in (self.weight, self.bias)))
