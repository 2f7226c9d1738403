"""A product of two activations as torch multiplies it by bytes, one matrix after another."""

import torch
from torch import Tensor, nn

from mmbitsplit.models.layers.integer_support import integer_product, traced
from mmbitsplit.models.layers.quantizers import ActivationQuantizer
from mmbitsplit.models.layers.quantizers.log2_quantizer import Log2Quantizer
from mmbitsplit.structures import QParams

# Multiplications of one matrix below which a float product of all at once takes less time: calls
# cost some microseconds each. Swin's windows (49 x 32 x 49) are below it, 64 x 32 x 64 are not.
LEAST_MULTIPLICATIONS = 1 << 17
# Longest sums of products of two bytes that stay inside 32 bits.
LONGEST = 2 ** 31 // 255 ** 2


def why_float_product(a: nn.Module | None, b: nn.Module | None) -> str | None:
    """Why a product cannot be computed with integers on any device, ``None`` where it can.

    Args:
        a, b: Quantizers of its inputs that are in use.
    """
    sides = (a, b)
    if any(side is None for side in sides):
        return 'one of its inputs is float'
    if any(isinstance(side, Log2Quantizer) for side in sides):
        return "torch has no integer product of powers of two (softmax='log2')"
    if any(side.soft for side in sides):
        return 'its scales are being learned'
    if sides[0].scale.device != sides[1].scale.device:
        return 'the scales of its inputs are on two devices'
    qparams = [side.qparams for side in sides]
    for one in qparams:
        points = one.zero_point
        if bool(((points < one.quant_min) | (points > one.limits()[1])).any()):
            return 'a zero point of its inputs is none of their codes'
        if one.quant_max - one.quant_min > 255:
            return 'its inputs have more than 8 bits'
    return None


class IntegerProduct:
    """Multiplies bytes for a ``Product``: unsigned ones of ``a`` by signed ones of ``b``.

    Args:
        a, b: Quantizers of the inputs, for which ``why_float_product`` has no reason.

    Attributes:
        too_small: Shape (M, K, N) of matrices that were multiplied in float, ``None`` so far.
        used: Whether some were multiplied as bytes.
    """

    least = LEAST_MULTIPLICATIONS

    def __init__(self, a: ActivationQuantizer, b: ActivationQuantizer):
        self._made_of = [value for side in (a, b) for value in (side.scale, side.zero_point)]
        self._factor = (a.scale.detach() * b.scale.detach()).to(torch.float32).contiguous()
        self._heads = self._factor.numel()
        self._prepare(a.qparams, b.qparams)
        self.too_small: tuple[int, int, int] | None = None
        self.used = False

    def _prepare(self, a: QParams, b: QParams) -> None:
        """Makes of the grids of both inputs what they are rounded by."""
        self._a, self._b = (_grid(side, signed) for side, signed in ((a, False), (b, True)))
        self._sums = tuple(bool(grid.zero.any()) for grid in (self._b, self._a))

    def is_for(self, *sides: nn.Module | None) -> bool:
        """Whether it multiplies as these quantizers say now."""
        return all(isinstance(side, ActivationQuantizer) and not side.soft for side in sides) \
            and all(one is other for one, other in zip(self._made_of, (
                value for side in sides for value in (side.scale, side.zero_point))))

    def product(self, a: Tensor, b: Tensor) -> Tensor | None:
        """What the product makes of real inputs.

        Args:
            a: (..., M, K).
            b: (..., K, N).

        Returns:
            (..., M, N) float32; ``None`` where floats have to be taken: for gradients, values that
            are no numbers, other dtypes, matrices that are multiplied by several, in a trace, and
            for matrices so small that it would take longer.
        """
        if any(x.dtype != torch.float32 or x.device != self._factor.device or not x.numel() or
               x.requires_grad and torch.is_grad_enabled() for x in (a, b)) or traced():
            return None
        batch, rows, inner, columns = a.shape[:-2], a.shape[-2], a.shape[-1], b.shape[-1]
        if batch != b.shape[:-2] or inner > LONGEST or self._heads > 1 and (
                not batch or batch[-1] != self._heads):
            return None
        if rows * inner * columns < self.least:
            self.too_small = rows, inner, columns
            return None
        y = self._multiply(_matrices(a), _matrices(b))
        self.used = self.used or y is not None
        return None if y is None else y.view(*batch, rows, columns)

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor | None:
        """(B, H, M, K) by (B, H, K, N): (B H, M, N)."""
        from mmbitsplit.functional.kernels.byte_matrices import byte_matrices, end_products
        left = byte_matrices(a, self._a, -1 if self._sums[0] else None, signed=False)
        right = byte_matrices(b, self._b, -2 if self._sums[1] else None, signed=True)
        if left is None or right is None:
            return None
        products = torch.empty((len(left.bytes), a.shape[-2], b.shape[-1]), dtype=torch.int32)
        for one, other, out in zip(left.bytes.unbind(), right.bytes.unbind(), products.unbind()):
            integer_product(one, other, out)
        return end_products(products, left, right, self._a.zero, self._b.zero, self._factor,
                            a.shape[1])


def _matrices(x: Tensor) -> Tensor:
    """The matrices of a tensor as (B, H, rows, columns), a view where there is one."""
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    return x if x.dim() == 4 else x.flatten(0, -4)


def _grid(qparams: QParams, signed: bool):
    """Bytes begin at the lowest code; signed ones lie around 0."""
    from mmbitsplit.functional.kernels.byte_matrices import ByteGrid
    middle = (qparams.quant_max - qparams.quant_min + 1) // 2 if signed else 0
    low, high = ((bound - qparams.zero_point).to(torch.float32) for bound in qparams.limits())
    zero = (qparams.zero_point - qparams.quant_min - middle).to(torch.int32)
    count = max(value.numel() for value in (qparams.scale, low, high, zero))
    return ByteGrid(*(value.expand(count).contiguous() for value in (
        qparams.scale.detach().to(torch.float32), low, high, zero)))
