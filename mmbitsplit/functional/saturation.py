"""Which products of bytes saturate where a processor adds two of them in 16 bits.

Processors without VNNI multiply bytes by an instruction that adds two neighbouring products in 16
bits and saturates (pmaddubsw). Which inputs are neighbours depends on how a runtime lays out its
tensors, so the two weights of a channel that reach farthest are taken: below the bound no order
saturates. Codes of 7 bits stay below it: 255 (63 + 63) = 32130.
"""

from torch import Tensor

LARGEST_PAIR, LOWEST_PAIR = 2 ** 15 - 1, -2 ** 15


def pair_range(codes: Tensor) -> tuple[int, int]:
    """Lowest and highest sum of two weights of one output channel, or of one alone.

    Args:
        codes: (..., N) integers, the weights of a channel along the last dimension.
    """
    most = min(2, codes.shape[-1])
    codes = codes.long()
    return (int(codes.clamp(max=0).topk(most, -1, largest=False).values.sum(-1).min()),
            int(codes.clamp(min=0).topk(most, -1).values.sum(-1).max()))


def pairs_saturate(codes: Tensor, reach: int) -> bool:
    """Whether two products, in whatever order, can leave 16 bits.

    Args:
        codes: (..., N) integers, the weights of a channel along the last dimension.
        reach: Largest unsigned byte that they are multiplied by.
    """
    lowest, highest = pair_range(codes)
    return reach * highest > LARGEST_PAIR or reach * lowest < LOWEST_PAIR
