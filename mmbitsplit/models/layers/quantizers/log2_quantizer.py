"""Quantizes softmax outputs to powers of two."""

import torch
from torch import Tensor, nn

from mmbitsplit.models.layers.quantizers.learning import check_width
from mmbitsplit.structures.products import Log2Params


def log2_round_trip(x: Tensor, num_bits: int) -> Tensor:
    """Returns the powers of two nearest to values in [0, 1], by their exponents.

    Codes are ``clamp(round(-log2 x), 0, 2^b - 1)``; the largest one stands for zero, which masked
    places of an attention map are.

    Source: Lin et al., FQ-ViT, IJCAI 2022, Eq. 12. Differs from source: zero has a code of its
    own, where the source's code gives it none and clamps to ``2^-(2^b - 1)`` or to zero.
    """
    last = 2 ** num_bits - 1
    codes = torch.round(-torch.log2(x)).clamp_(0, last)
    return torch.where(codes < last, torch.exp2(-codes), 0.0)


class Log2Quantizer(nn.Module):
    """Rounds values in [0, 1] to powers of two; it has no scale, and gradients go straight through.

    Args:
        params: Width of its codes.
    """

    unit, soft = False, False

    def __init__(self, params: Log2Params):
        super().__init__()
        self.num_bits = params.num_bits

    def forward(self, x: Tensor) -> Tensor:
        """The dequantized values."""
        rounded = log2_round_trip(x.detach(), self.num_bits)
        return x + (rounded - x).detach() if x.requires_grad else rounded

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths there are."""
        return (self.num_bits,)

    def use(self, num_bits: int) -> None:
        """Chooses among ``widths``: here there is one."""
        check_width(num_bits, self.widths)

    def solution(self) -> Log2Params:
        """What it stands for."""
        return Log2Params(self.num_bits)

    def solutions(self) -> tuple[Log2Params, ...]:
        """``solution`` of each width: here there is one."""
        return (self.solution(),)

    def extra_repr(self) -> str:
        return f'{2 ** self.num_bits} powers of two'
