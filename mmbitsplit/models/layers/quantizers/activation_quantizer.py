"""Quantizes what enters a layer or leaves it."""

import torch
from torch import Tensor, nn

from mmbitsplit.functional import fake_quantize_ste, product_input_ste
from mmbitsplit.structures import QParams


class ActivationQuantizer(nn.Module):
    """Rounds activations to an affine grid; a layer has one for its input, one for its output.

    Gradients go straight through inside the range, and to ``scale`` (LSQ's) once it requires them.

    Args:
        qparams: Scale, zero point and range of codes.
        channel_dim: The dimension that per-channel parameters run along.
    """

    def __init__(self, qparams: QParams, channel_dim: int):
        super().__init__()
        self.channel_dim, self.unit = channel_dim, qparams.unit
        self.quant_min, self.quant_max = qparams.quant_min, qparams.quant_max
        # A copy: it may be learnt in place, and whoever made a solution may keep it.
        self.register_buffer('scale', qparams.scale.detach().to(torch.float32, copy=True))
        self.register_buffer('zero_point', qparams.zero_point.to(torch.int32))
        self.register_buffer('channel_max', None if qparams.channel_max is None
                             else qparams.channel_max.to(torch.uint8))

    @property
    def qparams(self) -> QParams:
        """The parameters as they are now."""
        return QParams(self.scale, self.zero_point, self.quant_min, self.quant_max,
                       unit=self.unit, channel_max=self.channel_max)

    def forward(self, x: Tensor) -> Tensor:
        """What enters the product: codes less zero point (``unit``), or dequantized values."""
        return product_input_ste(x, self.qparams, self.channel_dim)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """The dequantized values, ``unit`` or not."""
        return fake_quantize_ste(x, self.qparams, self.channel_dim)

    def extra_repr(self) -> str:
        return f'codes from {self.quant_min} to {self.quant_max}, {self.scale.numel()} scale(s)'
