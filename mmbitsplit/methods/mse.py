"""Rounding at the scales of least squared rounding error."""

from dataclasses import dataclass

from mmbitsplit.methods.base import register_method
from mmbitsplit.methods.round_to_nearest import RoundToNearest
from mmbitsplit.structures.spec import WeightSearch


@register_method
@dataclass(frozen=True)
class MSE(RoundToNearest):
    """Weights (a scale a channel) and inputs (a scale a tensor) by mean squared error.

    Args:
        scale_search, bias_correction, guard: See ``RoundToNearest``.
    """

    scale_search: WeightSearch = 'mse'
