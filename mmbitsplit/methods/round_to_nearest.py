"""Plain rounding between the extremes: the paper's TF-Lite baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmbitsplit.functional import round_weight, weight_scale
from mmbitsplit.methods.base import Need, register_method
from mmbitsplit.methods.rounding import RoundingMethod, rounded_at
from mmbitsplit.structures import WeightSolution
from mmbitsplit.structures.spec import WeightSearch


@register_method
@dataclass(frozen=True)
class RoundToNearest(RoundingMethod):
    """TF-Lite (Krishnamoorthi, 2018): weights by the largest of a channel, inputs by their range.

    Args:
        scale_search: Of the weights and, unless ``activation`` says
            otherwise, of the inputs.
        bias_correction: Correct the bias for the mean error of the outputs.
        guard: Has nothing to fall back to; kept off.
    """

    scale_search: WeightSearch = 'minmax'
    bias_correction: bool = False
    guard: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.guard:
            raise ValueError('guard=True: plain rounding is what the guard falls back to.')

    @property
    def needs(self) -> Sequence[Need]:
        """Sums, only to correct the bias."""
        return ('sums',) if self.bias_correction else ()

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """One scale a tensor; TF-Lite's inputs have a zero point wherever they are negative."""
        symmetry = {'symmetry': 'asymmetric'} if self.scale_search == 'minmax' else {}
        return {'weight': {'scale_search': self.scale_search},
                'activation': {'mode': 'per_tensor', 'scale_search': self.scale_search,
                               **symmetry}}

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """See ``Method.round``."""
        scale = weight_scale(weight, num_bits, self.scale_search)
        return rounded_at(weight, round_weight(weight, scale, num_bits), scale)
