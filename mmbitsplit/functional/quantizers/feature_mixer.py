"""Features of three groups of widths, mixed into one.

Source: Xu et al., PTMQ: Post-training Multi-Bit Quantization of Neural Networks, AAAI 2024, Eq. 5
and the three cases of Figure 2a.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mmbitsplit.functional.quantizers.random_drop import RandomDrop

MixerCase = Literal['case1', 'case2', 'case3']
CASES: tuple[MixerCase, ...] = get_args(MixerCase)


@dataclass(frozen=True)
class FeatureMixer:
    """The multi-bit feature mixer; each element is drawn for itself.

    ``'case1'``: one of the three groups, float in places. ``'case2'``: the middle and the high
    group added, the low one in places; no float. ``'case3'`` (Eq. 5): all three added, float in
    places.

    Differs from source: what is added is divided by the sum of its weights, so that a mix is as
    large as its parts; with weights that sum to 1, as those of Eq. 5 have to, ``'case3'`` is Eq. 5
    to the letter. In ``'case2'`` this is needed, where the paper says "addition" alone.

    Args:
        case: Which.
        lambdas: Weights of the low, middle and high group.
        probability: p, that an element is replaced.
    """

    case: MixerCase = 'case3'
    lambdas: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    probability: float = 0.5

    def __call__(self, groups: Sequence[Tensor], plain: Callable[[], Tensor],
                 generator: torch.Generator) -> Tensor:
        """Mixes features.

        Args:
            groups: Of the low, middle and high group, of one shape.
            plain: Makes those of the float model, of the same shape.
            generator: Draws.
        """
        low, middle, high = groups
        if self.case == 'case1':
            one = groups[int(torch.randint(3, (), generator=generator))]
            return RandomDrop(self.probability, generator)(one, plain)
        drop = RandomDrop(self.probability, generator)
        if self.case == 'case2':
            return drop(added((middle, high), self.lambdas[1:]), lambda: low)
        return drop(added((low, middle, high), self.lambdas), plain)


def added(features: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of features of one shape."""
    total = sum(weights)
    parts = [feature * (weight / total) for feature, weight in zip(features, weights, strict=True)]
    return sum(parts[1:], parts[0])
