"""Layers that take each place of their input by itself, where they are given few places."""

import torch
from torch import Tensor

from mmbitsplit.models.layers.integer_packing import PackedCodes
from mmbitsplit.structures import LayerGeometry

# Multiplications up to which one compiled call takes less time than those of oneDNN.
FEW = 1 << 19
HALVES = 4  # times as many where codes are multiplied as two halves elsewhere


def takes_rows(geometry: LayerGeometry) -> bool:
    """Whether each place of a layer's output is of one place of its input."""
    if geometry.kind == 'linear':
        return True
    return geometry.kind == 'conv2d' and geometry.groups == 1 \
        and geometry.kernel_size == geometry.stride == (1, 1) and geometry.auto_padding == 'none' \
        and not any((*geometry.padding, *geometry.pre_padding))


class FewRows:
    """The product of few rows, in one compiled call.

    Args:
        geometry: Of a layer that ``takes_rows``.
        rounding: Scale, lowest and highest code less zero point, and what brings codes to 0 to 255,
            each (1,) or (in_channels,).
        scale: (out_channels,) real units a step of the product.
        bias: (out_channels,) or ``None``.
        halved: Whether other products take two halves of the codes.
    """

    def __init__(self, geometry: LayerGeometry, rounding: tuple[Tensor, ...], scale: Tensor,
                 bias: Tensor | None, halved: bool = False):
        self._times = HALVES if halved else 1
        self._channels, self._outputs = geometry.in_channels, geometry.out_channels
        self._maps = geometry.kind != 'linear'
        self._sides = torch.stack(rounding[:3]).numpy(), rounding[3].numpy()
        self._ends = scale.numpy(), (torch.empty(0) if bias is None else bias).numpy()

    def product(self, x: Tensor, codes: PackedCodes) -> Tensor | None:
        """What the layer makes of real inputs.

        Args:
            x: (B, C, H, W), or (..., C) of a linear layer.
            codes: Of the layer.

        Returns:
            float32; ``None`` where inputs are not few, do not lie in rows or have values that are
            no numbers, or calls in a row have not been enough.
        """
        single = self._maps and x.shape[2] == x.shape[3] == 1
        if self._maps and not single:
            x = x.permute(0, 2, 3, 1)
        rows = codes.rows(x.numel() * self._outputs <= self._times * FEW and (
            single or not self._maps or x.is_contiguous()))
        if rows is None:
            return None
        from mmbitsplit.functional.kernels.small_products import small_product
        y = small_product(x.reshape(-1, self._channels), *self._sides, rows, *self._ends)
        if y is None or single:
            return None if y is None else y.view(len(x), -1, 1, 1)
        y = y.view(*x.shape[:-1], -1)
        return y.permute(0, 3, 1, 2) if self._maps else y
