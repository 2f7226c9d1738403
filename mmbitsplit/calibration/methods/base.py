"""What a method is, and how a config names one."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from mmbitsplit.structures import (
    LayerStatistics,
    RowStatistics,
    WeightSolution,
    from_mapping,
    nearest,
)


class Method(Protocol):
    """Chooses weight codes of a layer from its statistics.

    Attributes:
        bias_correction: Fit the bias together with the weights.
        guard: Take plain rounding instead where it is better on held-out positions.
    """

    bias_correction: bool
    guard: bool

    def solve(self, statistics: LayerStatistics, weight: Tensor, num_bits: int,
              ) -> WeightSolution:
        """Returns codes and scales.

        Args:
            statistics: Sums over the sampled positions, centred when ``bias_correction``.
            weight: (G, M, N) float weight on the scale of the inputs of the sums.
            num_bits: 2 to 8.
        """

    def solve_rows(self, rows: RowStatistics, weight: Tensor, num_bits: int) -> WeightSolution:
        """The same for a layer too large for sums of products.

        Args:
            rows: The positions, to be centred when ``bias_correction``.
            weight, num_bits: As for ``solve``.
        """

    def quick(self) -> 'Method':
        """Returns a cheaper method whose results rank input quantizations alike."""


METHODS: dict[str, type] = {}


def register_method(cls: type) -> type:
    """Makes a frozen dataclass that follows ``Method`` known by its class name."""
    METHODS[cls.__name__] = cls
    return cls


def build_method(config: Mapping[str, Any]) -> Method:
    """Builds the method that ``config['type']`` names, with the other keys as its options.

    Raises:
        ValueError: The method or one of its options is unknown; names the nearest.
    """
    options = dict(config)
    name = options.pop('type')
    if name not in METHODS:
        raise ValueError(f"method.type='{name}' is not known; {nearest(name, METHODS)}.")
    return from_mapping(METHODS[name], options, f'quantization.method ({name})')
