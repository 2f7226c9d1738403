"""TensorRT's calibration: inputs by entropy, weights by their extremes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmbitsplit.methods.base import register_method
from mmbitsplit.methods.round_to_nearest import RoundToNearest


@register_method
@dataclass(frozen=True)
class KLDivergence(RoundToNearest):
    """TensorRT (Migacz, GTC 2017): an input's range loses least information when clipped there.

    Differs from source: inputs that are never negative have unsigned codes here, twice as many as
    TensorRT's signed ones.

    Args:
        scale_search: Of the weights; ``'minmax'`` as published.
        bias_correction, guard: See ``RoundToNearest``.
    """

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """One scale a tensor, by entropy, without zero point."""
        return {'weight': {'scale_search': self.scale_search},
                'activation': {'mode': 'per_tensor', 'scale_search': 'kl'}}
