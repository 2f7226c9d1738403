"""Bit-split as the paper has it, under one name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mmbitsplit.functional.solvers.bitsplit import Init
from mmbitsplit.methods.base import register_method
from mmbitsplit.methods.bitsplit import BitSplit
from mmbitsplit.structures import Range


@register_method
@dataclass(frozen=True)
class PublishedBitSplit(BitSplit):
    """Bit-split with ECAQ (Wang et al., ICML 2020) without anything of ours.

    Differs from source: starts from the scale of least rounding error instead of the largest
    weight's, and rounds are capped.

    Args:
        init, polish, max_sweeps, tolerance, ridge, bias_correction, guard, effort: See
            ``BitSplit``.
    """

    init: Init = 'mse'
    polish: bool = False
    ridge: Annotated[float, Range(0)] | None = 0.0
    bias_correction: bool = False
    guard: bool = False
    effort: Literal['fast'] = 'fast'

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """The paper's ECAQ: every channel's scale of least error, moved into the weights whole."""
        return {'activation': {'mode': 'ecaq', 'scale_search': 'mse', 'strength': 1.0}}
