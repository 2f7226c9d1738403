"""Which layers a processor without VNNI may compute wrongly.

There runtimes multiply bytes by an instruction that adds two neighbouring products in 16 bits and
saturates (pmaddubsw). Which inputs are neighbours depends on how a runtime lays out its tensors, so
the two weights of a channel that reach farthest are taken: below the bound no order saturates.
Codes of 7 bits stay below it: 255 (63 + 63) = 32130.
"""

from collections.abc import Mapping

import torch

from mmbitsplit.functional.patches import weight_rows
from mmbitsplit.models import QuantizedLayer

LARGEST_PAIR, LOWEST_PAIR = 2 ** 15 - 1, -2 ** 15


def saturating_layers(layers: Mapping[str, QuantizedLayer]) -> list[str]:
    """Returns the names of the layers that ``may_saturate``."""
    return [name for name, layer in layers.items() if may_saturate(layer)]


def may_saturate(layer: QuantizedLayer) -> bool:
    """Whether two products of a layer, in whatever order, can leave 16 bits."""
    if layer.qparams is None:  # computed in float
        return False
    lowest, highest = pair_range(weight_rows(layer.codes, layer.geometry))
    reach = input_reach(layer.qparams.quant_min, layer.qparams.quant_max)
    return reach * highest > LARGEST_PAIR or reach * lowest < LOWEST_PAIR


def pair_range(codes: torch.Tensor) -> tuple[int, int]:
    """Lowest and highest sum of two weights of one output channel, or of one alone.

    Args:
        codes: (..., N) integers, the weights of a channel along the last dimension.
    """
    most = min(2, codes.shape[-1])
    codes = codes.long()
    return (int(codes.clamp(max=0).topk(most, -1, largest=False).values.sum(-1).min()),
            int(codes.clamp(min=0).topk(most, -1).values.sum(-1).max()))


def input_reach(quant_min: int, quant_max: int) -> int:
    """Largest unsigned byte that such input codes become: of signed ones 128 more."""
    return int(quant_max) + (128 if quant_min < 0 else 0)
